"""Lists of shards: a path that exists is itself, names may have dots, and other files are none."""

from __future__ import annotations

import logging

import pytest

from pipeline.errors import InputError
from pipeline.io.paths import is_hidden, stem
from pipeline.io.shard_patterns import expand_shards, shards_in

ODD = ["a[1]", "b{1,2}", "c*", "d?", "e]", "f}", "{g", "[!h]", "i j", "k{0..2}", "l\\m", "n.o"]


def put(folder, *names):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).touch()
    return [str(folder / name) for name in names]


@pytest.mark.parametrize("name", ODD)
def test_a_folder_or_file_that_exists_is_itself(name, tmp_path, monkeypatch):
    shards = put(tmp_path / name, "00000.tar", "00001.tar", "00002.tar")
    put(tmp_path / "a1", "00000.tar")  # what the patterns would also match
    put(tmp_path / "b1", "00000.tar")
    folder = tmp_path / name
    for pattern in (
        folder,
        f"{folder}/",
        f"{folder}/*.tar",
        f"{folder}/{{00000..00002}}.tar",
        f"{folder}/0000[0-2].tar",
    ):
        assert [p.replace("//", "/") for p in expand_shards(str(pattern))] == shards
    assert expand_shards(shards) == shards
    monkeypatch.chdir(tmp_path)
    assert expand_shards(f"{name}/*.tar") == [f"{name}/{n:05d}.tar" for n in range(3)]
    (file,) = put(tmp_path, f"{name}.tar")
    assert expand_shards(file) == [file]


def test_patterns_still_are_patterns(tmp_path):
    for name in ("a", "b"):
        put(tmp_path / name, f"{name}0.tar", f"{name}1.tar")
    assert len(expand_shards(f"{tmp_path}/{{a,b}}/*.tar")) == len(expand_shards(f"{tmp_path}/[ab]/?[01].tar")) == 4
    assert len(expand_shards(f"{tmp_path}/{{a/a0,b/b1}}.tar")) == 2
    with pytest.raises(InputError, match=r"a/a2\.tar: no such file"):
        expand_shards(f"{tmp_path}/a/a{{0..2}}.tar")
    with pytest.raises(InputError, match="matches no file"):
        expand_shards(f"{tmp_path}/a/x*.tar")


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("laion.part.00000.tar", "laion.part.00000"), ("00000.tar", "00000"), ("x/00000.tar.gz", "00000"),
        ("v1.0.tgz", "v1.0"), ("s3://b/a.b/c.d.parquet", "c.d"), ("a.b.report.json", "a.b"), ("a.tar.tar", "a.tar"),
    ],
)  # fmt: skip
def test_a_shards_name_is_its_files_without_the_suffix(file, name):
    assert stem(file) == name


def test_compressed_tars_count_and_others_are_named(tmp_path):
    shards = put(
        tmp_path / "a", "0.tar", "1.tar.gz", "2.tgz", "3.tar.xz", "4.tar.bz2", "5.parquet", "._0.tar", ".x.tar.gz"
    )
    assert shards_in(tmp_path / "a") == expand_shards(str(tmp_path / "a")) == shards[:5]
    put(tmp_path / "b", "0.tar.zst", "1.tar.zst", "._2.tar")
    with pytest.raises(InputError, match=r"no \*\.tar files in this folder; found 0\.tar\.zst, 1\.tar\.zst"):
        expand_shards(str(tmp_path / "b"))
    put(tmp_path / "a", "0.tar.gz")
    with pytest.raises(InputError, match="have the same name"):
        expand_shards(str(tmp_path / "a"))


def test_a_dangling_link_costs_itself(tmp_path, caplog):
    shards = put(tmp_path / "a", "0.tar")
    (tmp_path / "a" / "1.tar").symlink_to("/gone/1.tar")
    with caplog.at_level(logging.WARNING):
        assert expand_shards(str(tmp_path / "a")) == expand_shards(f"{tmp_path}/a/*.tar") == shards
    assert caplog.text.count("1.tar: left out: no such file (a link to /gone/1.tar)") == 2
    with pytest.raises(InputError, match=r"no such file \(a link to /gone/1\.tar\)"):
        expand_shards(f"{tmp_path}/a/1.tar")


@pytest.mark.parametrize(
    ("path", "hidden"),
    [
        ("._0.jpg", True), ("a/.ipynb_checkpoints/0-checkpoint.jpg", True), ("__MACOSX/0.jpg", True),
        ("./0.jpg", False), ("a/../0.jpg", False), ("a.b/0.jpg", False), ("_0.jpg", False),
    ],
)  # fmt: skip
def test_hidden_parts_of_a_path(path, hidden):
    assert is_hidden(path) == hidden
