"""Undocumented parts of libraries exist and behave as the code expects.

Tried with Python 3.11.7. A failure here after an upgrade means that pipeline/system/library_internals.py has to change.
"""

from __future__ import annotations

import inspect
import io
import json
import tarfile

import pytest

from pipeline.system.library_internals import EndRecordingTarInfo, forget_members, is_uncompressed, json_chunks


@pytest.mark.parametrize("name", ["EOFHeaderError", "HeaderError"])
def test_tarfile_has_the_errors(name: str) -> None:
    assert issubclass(getattr(tarfile, name, type(None)), tarfile.TarError), f"tarfile.{name} is not what it was"


@pytest.mark.parametrize(("mode", "uncompressed"), [("w", True), ("w:gz", False)])
def test_a_stream_tells_its_compression_and_keeps_its_headers(mode: str, uncompressed: bool) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as tar:
        tar.addfile(tarfile.TarInfo("a.txt"))
    buffer.seek(0)
    with tarfile.open(fileobj=buffer, mode="r|*", tarinfo=EndRecordingTarInfo) as tar:
        assert is_uncompressed(tar) == uncompressed, "the stream's comptype is not what it was"
        for _ in tar:
            assert len(tar.getmembers.__self__.members) == 1, "TarFile.members is not what it was"
            forget_members(tar)
        assert tar.members == [] and tar.end == "end_mark"


def test_the_json_encoder_takes_its_nine_arguments() -> None:
    value = {"b": [1, 2.5, "ä\n"], "a": {"d": None, "c": True}}
    parts = json_chunks(json.JSONEncoder().default)(value, 0)
    assert "".join(parts) == json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert inspect.isbuiltin(json.encoder.c_make_encoder) or callable(json.encoder.c_make_encoder)
