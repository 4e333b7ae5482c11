"""Our tars are tarfile's, byte for byte."""

from __future__ import annotations

import io
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.io.tar_writer import TarWriter

NAMES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=130)


def same(groups):
    """Whether groups of members give what tarfile gives."""
    ours, theirs = io.BytesIO(), io.BytesIO()
    writer = TarWriter(ours)
    with tarfile.open(fileobj=theirs, mode="w|") as tar:
        for group in groups:
            writer.add(group)
            for name, data in group:
                info = tarfile.TarInfo(name)
                info.size, info.mode, info.uname, info.gname = len(data), 0o644, "root", "root"
                tar.addfile(info, io.BytesIO(data))
    writer.close()
    return ours.getvalue() == theirs.getvalue()


@given(st.lists(st.lists(st.tuples(NAMES, st.binary(max_size=1500)), max_size=3), max_size=4))
def test_bytes_are_those_of_tarfile(groups):
    assert same(groups)


@pytest.mark.parametrize("sizes", [(512, 1024), (1 << 20, 1), (1, (1 << 20) - 1), ((1 << 20) + 511, 0)])
def test_large_members_too(sizes):
    assert same([[(f"a{size}.jpg", bytes([size % 251]) * size) for size in sizes], [("b.json", b"{}")]])
