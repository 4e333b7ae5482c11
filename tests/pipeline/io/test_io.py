"""Atomic commits, tar shards with damage, names of shards, tallies that add up."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from pipeline.errors import InputError
from pipeline.execution.commit import commit_report, committed
from pipeline.execution.reports import ShardReport, StageReport, Tally
from pipeline.io.atomic import atomic_file, write_atomic
from pipeline.io.files import check_writable, read_small
from pipeline.io.paths import no_folder
from pipeline.io.shard_patterns import expand_shards
from pipeline.io.tars import TarProblems, read_tar, split_name, write_tar
from pipeline.io.temporaries import ABANDONED_SECONDS, clear_temporaries, temporary_beside
from pipeline.system.process_identity import short_host_identity


def test_a_file_is_whole_or_not_there(tmp_path):
    write_atomic(tmp_path / "a", "old")
    with pytest.raises(RuntimeError), atomic_file(tmp_path / "a") as file:
        file.write(b"half")
        raise RuntimeError
    assert (tmp_path / "a").read_text() == "old" and os.listdir(tmp_path) == ["a"]


def test_a_dangling_link_is_no_place_for_outputs(tmp_path):
    (tmp_path / "runs").symlink_to(tmp_path / "gone")
    (tmp_path / "file").touch()
    for below in ("runs", "runs/a/b"):
        with pytest.raises(NotADirectoryError):
            check_writable(tmp_path / below)
        path = tmp_path / below
        assert (
            no_folder(path)
            == f"{path}: {tmp_path}/runs is a link to {tmp_path}/gone, which is not there; want a folder"
        )
    assert no_folder(tmp_path / "file" / "a") == f"{tmp_path}/file/a: is, or is below, a file; want a folder"
    (tmp_path / "gone").mkdir()
    check_writable(tmp_path / "runs" / "a")


@pytest.mark.parametrize("size", [0, 1, 5000, (16 << 20) + 3])
def test_small_files_are_read_whole(tmp_path, size):
    data = os.urandom(size)
    (tmp_path / "a").write_bytes(data)
    assert read_small(tmp_path / "a") == data


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="no such files on this system")
def test_files_of_no_stated_size_are_read_whole_too():
    assert read_small("/proc/self/status").startswith(b"Name:") and b"VmRSS" in read_small("/proc/self/status")


def test_what_is_no_file_is_refused_as_open_does(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_small(tmp_path / "missing")
    with pytest.raises(IsADirectoryError):
        read_small(tmp_path)


def test_what_a_killed_process_left_is_cleared_and_a_living_one_is_not_disturbed(tmp_path):
    code = f"""
import os, signal
from pipeline.io.atomic import atomic_file
with atomic_file({str(tmp_path / "a")!r}) as file:
    file.write(b"half")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", code], check=False)
    living = temporary_beside(tmp_path / "b")
    living.write_bytes(b"still being written")
    assert len(os.listdir(tmp_path)) == 2
    assert clear_temporaries(tmp_path) == 1
    assert os.listdir(tmp_path) == [living.name]


def test_what_another_machine_is_writing_is_left_alone_until_it_was_still_for_a_day(tmp_path):
    theirs = (
        temporary_beside(tmp_path / "a")
        .name.replace(f".{short_host_identity()}-", ".0123abcd-")
        .replace(str(os.getpid()), "4000000")
    )
    for name in (theirs, ".notes.tmp", ".a.77.tmp"):
        (tmp_path / name).write_bytes(b"being written")
    assert clear_temporaries(tmp_path) == 0
    long_ago = time.time() - ABANDONED_SECONDS - 60
    for path in tmp_path.iterdir():
        os.utime(path, (long_ago, long_ago))
    assert clear_temporaries(tmp_path) == 1 and not (tmp_path / theirs).exists()


@given(name=st.text(st.characters(exclude_characters="/\0", exclude_categories=("Cs",)), min_size=1, max_size=250))
def test_temporary_names_fit_any_file_system_and_differ(name):
    names = {temporary_beside(Path("folder") / name).name for _ in range(3)}
    assert len(names) == 3 and max(len(n.encode()) for n in names) <= 255


def test_a_shard_is_done_only_with_its_fingerprint_and_its_files_whole(tmp_path):
    output = write_atomic(tmp_path / "s.parquet", b"data")
    report = ShardReport(stage="x", shard="s", fingerprint="f", outputs={"s.parquet": output})
    assert committed(tmp_path, "s", "f") is None
    commit_report(tmp_path, report)
    assert committed(tmp_path, "s", "f") == report
    assert committed(tmp_path, "s", "other") is None
    (tmp_path / "s.parquet").write_bytes(b"dat")
    assert committed(tmp_path, "s", "f") is None
    (tmp_path / "s.parquet").unlink()
    assert committed(tmp_path, "s", "f") is None


samples = st.lists(
    st.tuples(st.text("abc012", min_size=1, max_size=4),
              st.dictionaries(st.sampled_from(["jpg", "txt", "json"]), st.binary(max_size=700), min_size=1)),
    max_size=6,
    unique_by=lambda s: s[0],
)  # fmt: skip


@settings(max_examples=50, deadline=None)
@given(samples=samples)
def test_tar_round_trip_and_same_bytes(tmp_path_factory, samples):
    folder = tmp_path_factory.mktemp("t")
    first = write_tar(folder / "a.tar", iter(samples))
    assert write_tar(folder / "b.tar", iter(samples)) == first
    problems = TarProblems()
    assert [(s.key, s.files) for s in read_tar(folder / "a.tar", problems)] == samples
    assert problems.counts == {}


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_tar_cut_anywhere_gives_whole_samples_before_the_cut(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("t")
    written = [(f"k{i}", {"jpg": bytes([i]) * 900, "txt": b"caption"}) for i in range(3)]
    write_tar(folder / "a.tar", iter(written))
    whole = (folder / "a.tar").read_bytes()
    end = 3 * (512 + 1024 + 512 + 512)
    cut = data.draw(st.integers(513, end - 1))
    (folder / "a.tar").write_bytes(whole[:cut])
    problems = TarProblems()
    found = [(s.key, s.files) for s in read_tar(folder / "a.tar", problems)]
    for got, wanted in zip(found, written, strict=False):
        assert got[0] == wanted[0] and all(wanted[1][e] == v for e, v in got[1].items())
    assert len(found) >= cut // 2560
    boundary = cut % 2560 in (0, 1536)  # between two members nothing is half there, but the end mark is missing
    assert problems.counts == {"truncated_tar": 1} or boundary


def test_double_keys_and_unsafe_names_are_counted(tmp_path):
    import io

    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name in ("k1.jpg", "k2.jpg", "k1.jpg", "../evil.jpg", "noext", "k3.jpg", "k3.JPG"):
            info = tarfile.TarInfo(name)
            info.size = 3
            tar.addfile(info, io.BytesIO(b"abc"))
    problems = TarProblems()
    assert [s.key for s in read_tar(tmp_path / "a.tar", problems)] == ["k1", "k2", "k3"]
    assert problems.counts == {
        "duplicate_key": 1, "duplicate_member": 1, "member_without_extension": 1, "unsafe_name": 1,
    }  # fmt: skip


def test_shards_are_named_by_braces_globs_and_folders(tmp_path):
    for i in range(3):
        (tmp_path / f"{i:05d}.tar").touch()
    wanted = [str(tmp_path / f"{i:05d}.tar") for i in range(3)]
    assert expand_shards(str(tmp_path)) == expand_shards(str(tmp_path / "*.tar")) == wanted
    assert expand_shards(str(tmp_path / "{00000..00002}.tar")) == wanted
    with pytest.raises(InputError, match=r"00003\.tar: no such file"):
        expand_shards(str(tmp_path / "{00000..00003}.tar"))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "00001.tar").touch()
    with pytest.raises(InputError, match="have the same name"):
        expand_shards([str(tmp_path), str(tmp_path / "other")])


@given(kept=st.integers(0, 50), dropped=st.dictionaries(st.sampled_from("abc"), st.integers(1, 9)))
def test_tallies_add_up(kept, dropped):
    tally, other = Tally(), Tally()
    tally.keep(kept)
    for reason, n in dropped.items():
        tally.drop(reason, n)
        other.drop(reason, n)
    assert tally.seen == kept + sum(dropped.values())
    report = StageReport(stage="x", tallies={"samples": tally.model_copy(deep=True)})
    report.merge(StageReport(stage="x", tallies={"samples": other}))
    assert Tally.model_validate(report.tallies["samples"].model_dump()).seen == tally.seen + other.seen


def test_a_tally_that_does_not_add_up_is_refused():
    with pytest.raises(ValidationError, match="does not add up"):
        Tally(seen=3, kept=1, dropped={"x": 1})


def test_a_pattern_with_a_brace_too_many_is_named():
    with pytest.raises(InputError, match=r"crawl/\{00000\.\.00009\.tar: .*want a pattern like 'crawl/\{00000"):
        expand_shards("crawl/{00000..00009.tar")


def test_what_a_mac_leaves_beside_shards_is_none(tmp_path):
    for name in ("00000.tar", "._00000.tar"):
        (tmp_path / name).write_bytes(b"x")
    assert expand_shards(str(tmp_path)) == [str(tmp_path / "00000.tar")]


@settings(max_examples=400, deadline=None)
@given(
    st.one_of(st.text(max_size=12), st.lists(st.sampled_from(["a", "b.c", ".", "/", "..", "\n", "jpg"])).map("".join))
)
def test_names_of_members_are_split_as_webdataset_splits_them(name):
    from webdataset.tariterators import base_plus_ext

    assert (split_name(name) or (None, None)) == base_plus_ext(name)
