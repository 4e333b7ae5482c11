"""Images without shards: everything in a folder, list or table is a sample or counted, and changes are seen."""

from __future__ import annotations

import os
import shutil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data.crawl import caption_of, image_of
from pipeline.errors import InputError
from pipeline.io import virtual_shards
from pipeline.io.files import file_size, require_files
from pipeline.io.hashing import digest_file
from pipeline.io.paths import is_hidden, stem
from pipeline.io.samples import find_sample, joined_captions, read_samples
from pipeline.io.shard_patterns import expand_crawl, expand_shards
from pipeline.io.tars import TarProblems, split_name, write_tar
from pipeline.io.virtual_shards import LooseImages, virtual_shard
from tests.fixtures.crawl import jpeg
from tests.fixtures.loose_images import COUNTED, ODD, put, write_folder, write_image_table


@pytest.fixture
def small(monkeypatch):
    """Shards of three images."""
    monkeypatch.setattr(virtual_shards, "IMAGES_PER_SHARD", 3)


def read(shards):
    """(samples by key, problems) of all shards."""
    problems = TarProblems()
    return {s.key: s for shard in shards for s in read_samples(shard, problems)}, problems.counts


def test_a_folder_with_junk_is_read_and_what_is_no_image_is_counted(tmp_path, small):
    folder = write_folder(tmp_path / "My photos [1] ü")
    shards = expand_crawl(str(folder))
    assert [stem(s) for s in shards] == [f"My-photos-1-ü-{n:05d}" for n in range(len(shards))]
    samples, counts = read(shards)
    assert list(samples) == sorted(samples, key=lambda key: samples[key].path)
    assert {s.path: key for key, s in samples.items()} == {**ODD, "zero.jpg": "zero"}
    assert counts == COUNTED
    for path, key in ODD.items():
        assert image_of(samples[key])[1] == (folder / path).read_bytes()
        assert caption_of(samples[key]) == ("a red car next to a small green tree", None)
        assert find_sample(next(s for s in shards if key in read([s])[0]), key) == samples[key]
    assert find_sample(shards[0], "none") is None
    require_files(shards)
    assert sum(map(file_size, shards)) == sum(len(d) for s in samples.values() for d in s.files.values())
    assert expand_crawl(shards) == shards == expand_crawl([shards[-1], *shards[:-1]])
    assert expand_crawl(f"{folder}/") == shards
    with pytest.raises(InputError, match=r"no \*\.tar files in this folder"):
        expand_shards(str(folder))  # of trainings, which read tars alone


NAMES = st.text(
    st.sampled_from("ab.%~/E2\u202f\udce9é ") | st.characters(exclude_categories=["Cs"], exclude_characters="\0/"),
    max_size=6,
)
PATHS = st.builds("{}{}.{}".format, NAMES, st.sampled_from("ab"), st.sampled_from(["jpg", "JPG", "png"]))


@given(st.sets(PATHS, min_size=1, max_size=12))
def test_different_paths_have_different_keys_that_tars_can_hold(paths):
    images = LooseImages("", sorted(paths), virtual_shards._same_stem(sorted(paths)), [])
    keys = [images.key(path) for path in images.paths]
    assert len(set(keys)) == len(keys)
    for key in keys:
        assert key.isprintable() and key.encode() and not is_hidden(key) and not key.startswith("/")
        assert split_name(f"{key}.jpg") == (key, "jpg")


def test_a_change_changes_the_digest_of_its_shard_alone(tmp_path, small):
    folder = tmp_path / "photos"
    for n in range(9):
        put(folder, f"{n}/x.jpg", jpeg(n))

    def state():
        return {stem(s): digest_file(s) for s in expand_crawl(str(folder))}

    def changed(before):
        return {name for name, digest in state().items() if before.get(name) != digest}

    first = state()
    put(folder, "4/x.txt", b"a red car")  # a caption
    assert changed(first) == {"photos-00001"}
    second = state()
    put(folder, "7/x.jpg", jpeg(99))
    assert changed(second) == {"photos-00002"}
    third = state()
    put(folder, "9/x.jpg", jpeg(9))
    assert changed(third) == {"photos-00003"}
    fourth = state()
    put(folder, "9/notes.md", b"no image")
    assert not changed(fourth)
    put(folder, "6/x.png", jpeg(9))  # keys change: x is x%~jpg now
    assert changed(fourth) == {"photos-00002", "photos-00003"}
    shutil.copytree(folder, tmp_path / "elsewhere" / "photos")
    moved = {stem(s): digest_file(s) for s in expand_crawl(str(tmp_path / "elsewhere" / "photos"))}
    assert moved == state()


def test_the_key_of_a_shards_last_image_depends_on_the_next_shards_first(tmp_path, small):
    for n in range(3):
        put(tmp_path, f"photos/{n}.jpg", jpeg(n))
    (shard,) = expand_crawl(str(tmp_path / "photos"))
    before = digest_file(shard)
    put(tmp_path, "photos/2.png", jpeg(9))
    first, _ = expand_crawl(str(tmp_path / "photos"))
    assert stem(first) == stem(shard) and digest_file(first) != before
    assert list(read([first])[0]) == ["0", "1", "2%~jpg"]


def test_large_shards_digests_are_cached_until_a_file_changes(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for n in range(2):
        put(tmp_path, f"photos/{n}.jpg", bytes([n]) * (3 << 20))
        os.utime(tmp_path / f"photos/{n}.jpg", (10**9, 10**9))
    (shard,) = expand_crawl(str(tmp_path / "photos"))
    first = digest_file(shard)
    (entry,) = (tmp_path / "cache").rglob("digests/*")
    text = entry.read_bytes()
    assert text.endswith(first.encode())
    entry.write_bytes(text[:-64] + b"0" * 64)
    from pipeline.io.hashing import _digest_local

    _digest_local.cache_clear()
    assert digest_file(shard) == "0" * 64  # read from the cache
    put(tmp_path, "photos/1.jpg", b"x" * (3 << 20))
    assert digest_file(shard) not in (first, "0" * 64)


def test_a_shard_whose_images_have_changed_is_refused_not_read_as_another(tmp_path, small):
    for n in range(6):
        put(tmp_path, f"photos/{n}.jpg", jpeg(n))
    first, second = expand_crawl(str(tmp_path / "photos"))
    (tmp_path / "photos/0.jpg").unlink()
    (tmp_path / "photos/3.jpg").rename(tmp_path / "photos/33.jpg")
    virtual_shards._LISTINGS.clear()  # as another process
    for use in (read_samples, digest_file):
        with pytest.raises(InputError, match="found other images than those that photos-00001 was made of"):
            list(use(second))
    with pytest.raises(InputError, match="photos-00000"):
        expand_crawl([first, second])
    assert file_size(first) is None
    shutil.rmtree(tmp_path / "photos")
    with pytest.raises(InputError, match="no such file"):
        require_files([first])


def test_a_list_names_images_anywhere(tmp_path):
    put(tmp_path, "data/in/a.jpg", jpeg(0))
    put(tmp_path, "other/b.png", jpeg(1))
    put(tmp_path, "data/in/a.json", b'{"caption": "a red car"}')
    lines = [
        "in/a.jpg",
        "",
        "./in/a.jpg",
        f"{tmp_path}/other/b.png",
        "../other/b.png",
        "in/gone.jpg",
        "in/x.mp4",
        "in/pipe.gif",
    ]
    os.mkfifo(tmp_path / "data/in/pipe.gif")
    put(tmp_path, "data/train.lst", b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    (shard,) = expand_crawl(str(tmp_path / "data/train.lst"))
    assert stem(shard) == "train-00000"
    samples, counts = read([shard])
    outside = f"%2F{str(tmp_path)[1:]}/other/b".replace(".", "%2E")
    assert list(samples) == ["in/a", outside, "%2E%2E/other/b"]
    assert caption_of(samples["in/a"]) == ("a red car", None)
    assert counts == {"listed_twice": 1, "missing_file": 1, "not_an_image": 1, "unreadable_file": 1}
    assert len(digest_file(shard)) == 64
    put(tmp_path, "urls.txt", b"https://example.com/a.jpg\n")
    with pytest.raises(InputError, match="line 1: found a URL; want paths"):
        expand_crawl(str(tmp_path / "urls.txt"))
    put(tmp_path, "words.txt", b"hello\n")
    with pytest.raises(InputError, match=r"words\.txt: no image in it \(line 1"):
        expand_crawl(str(tmp_path / "words.txt"))


def test_img2datasets_files_layout_has_captions_and_one_shard_a_folder(tmp_path):
    for folder in range(3):
        for n in range(2):
            key = f"files/{folder:05d}/{folder:05d}{n:04d}"
            put(tmp_path, f"{key}.jpg", jpeg(n))
            put(tmp_path, f"{key}.txt", f"a red car {folder} {n}".encode())
            put(tmp_path, f"{key}.json", b'{"original_width": 100, "original_height": 80}')
    put(tmp_path, "files/00000_stats.json", b"{}")
    (whole,) = expand_crawl(str(tmp_path / "files"))
    samples, counts = read([whole])
    assert len(samples) == 6 and counts == {"not_an_image": 1}
    assert samples["00002/000020001"].files.keys() == {"jpg", "txt", "json"}
    assert [stem(s) for s in expand_crawl(f"{tmp_path}/files/{{00000..00002}}")] == [f"0000{n}-00000" for n in range(3)]
    assert len(expand_crawl(f"{tmp_path}/files/0000[0-1]")) == 2


def test_an_image_table_has_a_sample_a_row(tmp_path, small):
    rows = [
        {"image": {"bytes": jpeg(0), "path": "x.png"}, "caption": ["a dog", "a cat."], "label": 1},
        {"image": {"bytes": jpeg(1), "path": None}, "caption": ["one car"], "label": 1},
        {"image": None, "caption": None, "label": 1},
        {"image": {"bytes": b"", "path": "x.gif"}, "caption": [], "label": 1},
    ]
    table = write_image_table(tmp_path / "set/data/train-00000.parquet", rows, group=1)
    shards = expand_crawl(str(tmp_path / "set"))
    assert shards == expand_crawl(str(table)) and [stem(s) for s in shards] == [f"train-00000-{n:05d}" for n in (0, 1)]
    samples, counts = read(shards)
    assert list(samples) == [f"train-00000-{n:07d}" for n in range(4)] and not counts
    first, second, none, empty = samples.values()
    assert first.files == {"jpg": jpeg(0), "txt": b"a dog. a cat."} and second.files["txt"] == b"one car"
    assert none.files == {} and empty.files == {"gif": b""}
    assert find_sample(shards[1], empty.key) == empty
    assert sum(map(file_size, shards)) <= table.stat().st_size
    digests = list(map(digest_file, shards))
    assert len(set(digests)) == 2
    write_image_table(table, [*rows[:3], rows[0]], group=1)
    assert not set(map(digest_file, expand_crawl(str(table)))) & set(digests)
    write_image_table(tmp_path / "two.parquet", [{"image": rows[0]["image"], "n": 1}])
    assert len(expand_crawl(str(tmp_path / "two.parquet"))) == 1
    cut = table.read_bytes()
    table.write_bytes(cut[:100] + bytes(len(cut) - 600) + cut[-500:])
    with pytest.raises(InputError, match=r"train-00000\.parquet"):
        read(expand_crawl(str(table)))


def test_what_cannot_be_meant_is_refused_by_name(tmp_path, caplog):
    put(tmp_path, "empty/notes.md", b"")
    with pytest.raises(InputError, match=r"empty: no \*\.tar files in this folder, nor images.*found notes\.md"):
        expand_crawl(str(tmp_path / "empty"))
    put(tmp_path, "both/a.jpg", jpeg(0))
    write_image_table(tmp_path / "both/data/a.parquet", [{"image": {"bytes": b"x", "path": ""}}])
    with pytest.raises(InputError, match=r"found images \(such as 'a\.jpg'\) and shards .*a\.parquet"):
        expand_crawl(str(tmp_path / "both"))
    put(tmp_path, "mixed/a.jpg", jpeg(0))
    (tmp_path / "mixed/in").mkdir()
    write_tar(tmp_path / "mixed/in/0.tar", [("a", {"jpg": b"x"})])
    with pytest.raises(InputError, match=r"and shards .*0\.tar"):
        expand_crawl(str(tmp_path / "mixed"))
    with pytest.raises(InputError, match="found an image; want its folder"):
        expand_crawl(f"{tmp_path}/both/*.jpg")
    shutil.copy(tmp_path / "mixed/in/0.tar", tmp_path / "mixed/0.tar")
    assert expand_crawl(str(tmp_path / "mixed")) == [str(tmp_path / "mixed/0.tar")]
    assert "images beside them, which are not" in caplog.text
    for folder in ("x/photos", "y/photos"):
        put(tmp_path, f"{folder}/a.jpg", jpeg(0))
    with pytest.raises(InputError, match="same name"):
        expand_crawl([str(tmp_path / "x/photos"), str(tmp_path / "y/photos")])
    write_image_table(tmp_path / "plain.parquet", [{"n": 1}])
    with pytest.raises(InputError, match="no Parquet table with an image column"):
        expand_crawl(str(tmp_path / "plain.parquet"))
    assert virtual_shard("s3://bucket/0.tar") is None
    with pytest.raises(
        InputError, match=r"s3://bucket/list\.txt: .* lists and tables are read from a file system only"
    ):
        expand_crawl("s3://bucket/list.txt")


def test_captions_become_sentences():
    assert joined_captions(["a dog", None, " a cat! ", "", "a dog"]) == "a dog. a cat!"
    assert joined_captions(["one car", "one car"]) == "one car"
    assert joined_captions([]) == ""
