"""Our tars are tarfile's, byte for byte."""

from __future__ import annotations

import io
import tarfile

from hypothesis import given
from hypothesis import strategies as st

from pipeline.io.tar_writer import TarWriter

NAMES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=130)


@given(st.lists(st.tuples(NAMES, st.binary(max_size=1500)), max_size=8))
def test_bytes_are_those_of_tarfile(members):
    ours, theirs = io.BytesIO(), io.BytesIO()
    writer = TarWriter(ours)
    with tarfile.open(fileobj=theirs, mode="w|") as tar:
        for name, data in members:
            writer.add(name, data)
            info = tarfile.TarInfo(name)
            info.size, info.mode, info.uname, info.gname = len(data), 0o644, "root", "root"
            tar.addfile(info, io.BytesIO(data))
    writer.close()
    assert ours.getvalue() == theirs.getvalue()
