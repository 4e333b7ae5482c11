"""Verdicts: what holds, several writers, kills, compaction."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from pipeline.data.verdicts import KINDS, VerdictLog, Verdicts, compact, read_log, rows
from pipeline.errors import InputError
from tests.fixtures.verdicts import verdict

START = datetime(2026, 1, 1, tzinfo=UTC)


def log_of(folder, *verdicts):
    with VerdictLog(folder) as log:
        log.append(*verdicts)


def test_a_verdict_comes_back_as_it_was_written(tmp_path):
    written = [
        verdict("fixed", box=(0.1, 1 / 3, 20.7, 30), boxes=((1, 2.5, 3, 4),), start=3, end=9),
        verdict("missing", boxes=((0, 0, 1, 1), (2, 2, 3, 3)), phrase="ein „Bär“\n", key="a/b ü.jpg"),
        verdict("reject", kind="machine", by="model@1"),
    ]
    log_of(tmp_path, *written)
    assert sorted(rows(read_log(tmp_path)), key=lambda v: v.id) == sorted(written, key=lambda v: v.id)
    assert compact(tmp_path) == 3
    assert sorted(rows(read_log(tmp_path)), key=lambda v: v.id) == sorted(written, key=lambda v: v.id)
    assert [p.suffix for p in tmp_path.iterdir()] == [".parquet"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"verdict": "fixed"}, "fixed: found no box and 0 new ones"),
        ({"verdict": "accept", "boxes": ((0, 0, 1, 1),)}, "accept: found no box and 1 new ones"),
        ({"verdict": "missing", "box": (0, 0, 1, 1), "boxes": ((0, 0, 1, 1),)}, "missing: found a box"),
        ({"verdict": "missing", "boxes": ((0, 0, 0, 1),)}, "has no area"),
        ({"start": 1}, "want both, or neither"),
    ],
)
def test_what_is_no_verdict(values, message):
    with pytest.raises(ValidationError, match=message):
        verdict(**values)


TARGETS = [{"box": None}, {"box": (0, 0, 5, 5)}, {"box": (0, 0, 5, 5.004)}, {"box": (0, 0, 5, 6)}, {"phrase": "b"}]
SAME = [0, 1, 1, 2, 3]
"""The target of each: boxes that differ by less than a hundredth of a pixel are one."""


@settings(deadline=None, max_examples=40)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 4), st.sampled_from(KINDS), st.sampled_from(["accept", "reject", "unsure", "withdrawn"])
        ),
        max_size=20,
    ),
    st.randoms(),
)
def test_the_latest_holds_and_a_persons_before_a_machines(tmp_path_factory, made, random):
    folder = tmp_path_factory.mktemp("v")
    verdicts = [
        verdict(decision, kind=kind, at=START + timedelta(seconds=i), **TARGETS[target])
        for i, (target, kind, decision) in enumerate(made)
    ]
    expected = {}
    for kind in KINDS:
        for (target, of, decision), one in zip(made, verdicts, strict=True):
            if of == kind:
                expected.setdefault((SAME[target], kind), None)
                expected[SAME[target], kind] = None if decision == "withdrawn" else one.id
    holds = {}
    for (target, _), one in expected.items():
        holds[target] = one or holds.get(target)
    random.shuffle(verdicts)
    middle = len(verdicts) // 2
    log_of(folder, *verdicts[:middle])
    if middle:
        compact(folder)
    log_of(folder, *verdicts[middle:])
    folder.mkdir(exist_ok=True)
    assert {v.id for v in rows(Verdicts.read(folder).table)} == set(filter(None, holds.values()))


WRITER = """
import sys, time
from pipeline.data.verdicts import VerdictLog
from tests.fixtures.verdicts import verdict
log = VerdictLog(sys.argv[1])
for i in range(100_000):
    log.append(verdict(key=f"{sys.argv[2]}-{i}"))
    print(i, flush=True)
"""


def test_writers_that_are_killed_lose_nothing_that_was_written(tmp_path):
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, tmp_path, str(n)], stdout=subprocess.PIPE) for n in range(2)
    ]
    for writer in writers:
        while int(writer.stdout.readline()) < 200:
            pass
    compact(tmp_path)  # takes nothing from a living writer
    last = []
    for writer in writers:
        writer.send_signal(signal.SIGKILL)
        last.append(int(writer.stdout.read().splitlines()[-1]))
        writer.wait()
    before = {v.key for v in rows(read_log(tmp_path))}
    assert before >= {f"{n}-{i}" for n in range(2) for i in range(last[n] + 1)}
    assert compact(tmp_path) == len(before)
    assert {v.key for v in rows(read_log(tmp_path))} == before
    assert len(list(tmp_path.iterdir())) == 1


def test_an_end_without_newline_is_left_out_and_a_damaged_line_is_named(tmp_path):
    log_of(tmp_path, verdict(), verdict(key="b"))
    (file,) = tmp_path.glob("*.jsonl")
    whole = file.read_bytes()
    file.write_bytes(whole[:-10])
    assert len(read_log(tmp_path)) == 1
    file.write_bytes(whole.replace(b"accept", b"perhaps"))
    with pytest.raises(InputError, match=rf"{file.name}: found a line that is no verdict \(verdict 'perhaps'\)"):
        read_log(tmp_path)
    file.write_bytes(b'{"shard": 1}\n' + whole)
    with pytest.raises(InputError, match="found a line that is no verdict"):
        read_log(tmp_path)


def test_a_full_disk_leaves_no_half_verdict(tmp_path):
    pytest.importorskip("resource")
    code = """
import resource, signal, sys
from pipeline.data.verdicts import VerdictLog
from pipeline.errors import InputError
from tests.fixtures.verdicts import verdict
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
log, n = VerdictLog(sys.argv[1]), 0
try:
    for n in range(100):
        log.append(verdict())
except InputError as error:
    print(n, error)
"""
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True)
    written, text = done.stdout.split(maxsplit=1)
    assert "cannot be appended to" in text
    assert len(read_log(tmp_path)) == int(written) > 0


def test_folders_that_are_none(tmp_path):
    with pytest.raises(InputError, match="no such folder; want one of verdicts"):
        read_log(tmp_path / "none")
    with pytest.raises(InputError, match="want a local folder"):
        VerdictLog("s3://bucket/verdicts")
    if os.getuid():
        tmp_path.chmod(0o500)
        with pytest.raises(InputError, match="cannot be written to"):
            VerdictLog(tmp_path / "v").append(verdict())


def test_the_fingerprint_is_of_what_was_decided(tmp_path):
    log_of(tmp_path / "a", verdict(), verdict(shard="other"))
    log_of(tmp_path / "b", verdict(at=START))
    log_of(tmp_path / "c", verdict("reject"))
    a, b, c = (Verdicts.read(tmp_path / name) for name in "abc")
    assert a.fingerprint_of("s") == b.fingerprint_of("s") != c.fingerprint_of("s")
    assert a.fingerprint_of("none") == {}


def test_verdicts_on_other_shards(tmp_path, caplog):
    log_of(tmp_path, verdict(), verdict(shard="other"))
    Verdicts.read(tmp_path).warn_of_unknown_shards(["s", "other", "third"])
    assert not caplog.text
    Verdicts.read(tmp_path).warn_of_unknown_shards(["s"])
    assert "found verdicts on 1 shards that are not here, first other; they are left out" in caplog.text
    with pytest.raises(InputError, match="found verdicts on 2 shards that are not here, first other; want verdicts"):
        Verdicts.read(tmp_path).warn_of_unknown_shards(["third"])
