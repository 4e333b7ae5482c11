"""Indexes of training shards: small, right, remembered while the shard stays as it is, and of no harm when damaged."""

from __future__ import annotations

import io
import os
import pickle
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFile, MemoryFileSystem
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.shard_index import IMAGES, ShardIndex, index_shard, read_headers
from pipeline.data.training_shards import ShardSet, rank_order
from pipeline.errors import InputError, RunError
from pipeline.execution.progress import Silent
from pipeline.io import files
from pipeline.io.hashing import digest_file
from pipeline.training.index_shards import index_shards

KEYS = st.lists(st.text("abä_7/", min_size=1, max_size=20).filter(lambda k: not k.endswith("/")), unique=True)


def write(path: Path, members: list[tuple[str, bytes]]) -> Path:
    """A tar of these members, two days old: what is younger than two seconds is not remembered."""
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    age(path)
    return path


def age(path: Path) -> None:
    os.utime(path, (time.time() - 200_000,) * 2)


def large(path: Path, records: int = 3, filler: bytes = b"x") -> Path:
    """A shard of more than 4 MiB, as small ones are not remembered."""
    members = []
    for i in range(records):
        members += [(f"{path.stem}-{i}.jpg", filler * (i + 5)), (f"{path.stem}-{i}.json", b"{}" + b" " * i)]
    return write(path, [*members, ("last.jpg", bytes(5 << 20)), ("last.json", b"{}")])


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache folder of the test's own; the files of indexes in it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return lambda: sorted((tmp_path / "cache" / "glip-self-train" / "indexes").iterdir())


def everything(index: ShardIndex) -> list:
    return [(index.key(i), index.record(i), index.image(i)) for i in range(len(index))]


@given(keys=KEYS, kinds=st.lists(st.sets(st.sampled_from(IMAGES), min_size=1), min_size=1), late=st.booleans())
@settings(max_examples=60, deadline=None)
def test_an_index_finds_what_was_written(keys, kinds, late):
    wanted, members = [], []
    for n, key in enumerate(keys):
        there = kinds[n % len(kinds)]
        files = [(f"{key}.{e}", f"{e} of {key}".encode()) for e in (*sorted(there), "json", "txt")]
        members += files[:1] if late else files
        best = next(e for e in IMAGES if e in there)
        wanted.append((key, f"json of {key}".encode(), best, f"{best} of {key}".encode()))
        if late:  # the rest of each comes behind all others
            members = [*members, *files[1:]]
    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder) / "a.tar", members)
        data, made = path.read_bytes(), read_headers(str(path))
    for index in (made, ShardIndex.from_bytes(made.to_bytes())):
        found = []
        for i in range(len(index)):
            (start, size), (kind, (at, length)) = index.record(i), index.image(i)
            found.append((index.key(i), data[start : start + size], kind, data[at : at + length]))
        assert found == wanted
        assert index.nbytes == 37 * len(keys) + sum(len(k.encode()) for k in keys)


def test_a_remembered_index_needs_no_look_into_the_shard_until_it_changes(tmp_path, cache):
    path = large(tmp_path / "a.tar")
    first, time_ns = index_shard(str(path)), path.stat().st_mtime_ns
    path.write_bytes(bytes(path.stat().st_size))  # nothing is left in it, and nobody can tell
    os.utime(path, ns=(time_ns, time_ns))
    assert everything(index_shard(str(path))) == everything(first) and len(cache()) == 1
    large(path, records=7)
    assert len(index_shard(str(path))) == 8 and len(cache()) == 1
    os.truncate(path, 5 << 20)
    with pytest.raises(InputError, match=r"a\.tar: not a whole tar"):
        index_shard(str(path))
    path.unlink()
    with pytest.raises(InputError, match=r"a\.tar: no such file"):
        index_shard(str(path))


def test_what_is_small_or_may_still_change_is_not_remembered(tmp_path, cache):
    small, young = write(tmp_path / "a.tar", [("a.jpg", b"1"), ("a.json", b"{}")]), large(tmp_path / "b.tar")
    os.utime(young)
    assert [len(index_shard(str(p))) for p in (small, young)] == [1, 4]
    with pytest.raises(FileNotFoundError):
        cache()


def test_a_damaged_entry_is_made_anew(tmp_path, cache):
    path = large(tmp_path / "a.tar")
    wanted = everything(index_shard(str(path)))
    (entry,) = cache()
    whole = entry.read_bytes()
    begin = whole.index(b"shard index 1")
    for damaged in (
        *(whole[:n] + bytes([whole[n] ^ 4]) + whole[n + 1 :] for n in range(begin, len(whole), 3)),
        *(whole[:n] for n in range(0, len(whole), 20)),
        whole + b"more",
        whole.replace(b"index 1", b"index 0"),
    ):
        entry.write_bytes(damaged)
        assert everything(index_shard(str(path))) == wanted and entry.read_bytes() == whole


def test_damaged_digests_are_taken_anew(tmp_path, cache):
    path = large(tmp_path / "a.tar")
    wanted = digest_file(path)
    (entry,) = (tmp_path / "cache" / "glip-self-train" / "digests").iterdir()
    whole = entry.read_bytes()
    entry.write_bytes(whole[:-1])
    command = "import sys; from pipeline.io.hashing import digest_file; print(digest_file(sys.argv[1]))"
    done = subprocess.run([sys.executable, "-c", command, str(path)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == wanted and entry.read_bytes() == whole


def test_without_a_place_to_remember_it_works_all_the_same(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    path = large(tmp_path / "a.tar")
    assert len(index_shard(str(path))) == len(index_shard(str(path))) == 4


def test_shards_are_read_in_any_order_and_stand_in_their_own(tmp_path, monkeypatch):
    paths = [str(large(tmp_path / f"{n}.tar", records=n)) for n in range(6)]
    monkeypatch.setenv("RANK", "3")
    assert rank_order(paths) != paths and sorted(rank_order(paths)) == paths
    records = ShardSet(paths)
    assert records.counts == [n + 1 for n in range(6)] and records.name(4, 2) == "4/4-2"
    monkeypatch.setenv("RANK", "0")
    assert rank_order(paths) == paths and ShardSet(paths).counts == records.counts


@pytest.fixture
def bucket(tmp_path):
    """Puts a file behind a URL."""
    fs, folder = fsspec.filesystem("memory"), f"/{tmp_path.name}"

    def put(path: Path) -> str:
        fs.pipe_file(f"{folder}/{path.name}", path.read_bytes())
        return f"memory://{tmp_path.name}/{path.name}"

    yield put
    fs.rm(folder, recursive=True)


def test_behind_a_url_it_is_as_on_a_disk(tmp_path, bucket):
    here = large(tmp_path / "a.tar")
    there = bucket(here)
    assert everything(read_headers(there)) == everything(read_headers(str(here)))
    records, same = ShardSet([there]), ShardSet([str(here)])
    assert [records.image(0, n) for n in range(4)] == [same.image(0, n) for n in range(4)]
    assert pickle.loads(pickle.dumps(records)).image(0, 1) == same.image(0, 1)


@pytest.mark.parametrize("bytes_left", [5 << 20, 700, 0])
def test_half_a_shard_behind_a_url_is_refused(tmp_path, bucket, bytes_left):
    path = large(tmp_path / "a.tar")
    os.truncate(path, bytes_left)
    url = bucket(path)
    with pytest.raises(InputError, match=rf"{url}: not a whole tar"):
        index_shard(url)
    with pytest.raises(InputError, match=r"a\.tar: not a whole tar"):
        index_shard(str(path))


def test_a_shard_that_was_replaced_by_a_shorter_one_is_no_record(tmp_path, bucket):
    records = ShardSet([bucket(large(tmp_path / "a.tar"))])
    bucket(write(tmp_path / "a.tar", [("a.jpg", b"1"), ("a.json", b"{}")]))
    with pytest.raises(RunError, match=r"a\.tar: 3584 bytes from byte 6656 on, want 5242880; has it been replaced"):
        records.image(0, 3)


def test_a_store_that_does_not_answer_is_no_broken_archive(tmp_path, bucket, monkeypatch):
    url = bucket(large(tmp_path / "a.tar"))
    records = ShardSet([url])
    monkeypatch.setattr(files, "PATIENCE", 0)

    def silent(*_, **__):
        raise TimeoutError("no word for 60 s")

    monkeypatch.setattr(MemoryFileSystem, "cat_file", silent)
    with pytest.raises(RunError, match=rf"{url}: no answer from its store \(TimeoutError: no word for 60 s\)"):
        records.record(0, 0)
    monkeypatch.setattr(MemoryFile, "read", silent)
    with pytest.raises(RunError, match=rf"{url}: no answer from its store \(TimeoutError: no word for 60 s\)"):
        read_headers(url)


class Told(Silent):
    """Keeps what it is told."""

    def __init__(self):
        self.began, self.done, self.ended = [], 0, False

    def begin(self, stage, total, unit="shards"):
        self.began.append((total, unit))

    def advance(self, n, unit="samples"):
        self.done += n

    def end(self, report):
        self.ended = True


def test_looking_through_shards_leaves_digests_and_indexes(tmp_path, cache):
    paths = [str(large(tmp_path / f"{n}.tar")) for n in range(3)]
    told, small = Told(), str(write(tmp_path / "small.tar", [("a.jpg", b"1"), ("a.json", b"{}")]))
    index_shards([*paths, small], told)
    assert (told.began, told.done, told.ended) == ([(3, "shards")], 3, True) and len(cache()) == 3
    assert len(list((tmp_path / "cache" / "glip-self-train" / "digests").iterdir())) == 3
    quiet = Told()
    index_shards([small], quiet)
    assert quiet.began == [] and not quiet.ended
    write(tmp_path / "broken.tar", [("a.jpg", bytes(5 << 20))])
    with pytest.raises(InputError, match=r"broken\.tar: a has \['jpg'\], want a json record"):
        index_shards([*paths, str(tmp_path / "broken.tar")], Silent())


@pytest.mark.slow
def test_processes_at_the_same_work_get_the_same(tmp_path, cache):
    paths = [str(large(tmp_path / f"{n}.tar", records=200 + n)) for n in range(4)]
    code = (
        "import sys, zlib; from pipeline.execution.progress import Silent;"
        "from pipeline.data.training_shards import ShardSet;"
        "from pipeline.training.index_shards import index_shards;"
        "index_shards(sys.argv[1:], Silent()); s = ShardSet(sys.argv[1:]);"
        "print(s.counts, zlib.crc32(b''.join(i.to_bytes() for i in s._index)))"
    )
    children = [
        subprocess.Popen(
            [sys.executable, "-c", code, *paths],
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"RANK": str(rank)},
        )
        for rank in (0, 2)
    ]
    said = {child.communicate(timeout=120)[0] for child in children}
    assert len(said) == 1 and said.pop().startswith("[201, 202, 203, 204]") and len(cache()) == 4
    assert not list((tmp_path / "cache").rglob("*.tmp"))
