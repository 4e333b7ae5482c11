"""Files against the sizes and checksums that a manifest states: `datasets check`."""

from __future__ import annotations

import hashlib
import json

import fsspec
import pytest
from click.testing import CliRunner

from pipeline.cli import app as cli
from pipeline.data.checksums import check_files
from pipeline.data.manifests import read_manifest

GOOD, OTHER = b"as its owners publish it", b"as its owners publish 1t"


def manifest(folder, **more):
    """A set with an archive of images, a label file and a list of classes; only the first two have sums."""
    files = [
        {
            "name": "images.zip",
            "bytes": len(GOOD),
            "sha256": hashlib.sha256(GOOD).hexdigest(),
            "checksum_source": "its page",
        },
        {"name": "a.json", "md5": hashlib.md5(GOOD).hexdigest(), "checksum_source": "its page"},
        {"name": "classes.txt"},
    ]
    one = {
        "kind": "detection",
        "format": "coco",
        "annotations": "pets/labels/a.json",
        "images_folder": "pets/train",
        "files": files,
    }
    two = {**one, "files": [*files[:1], {**files[1], "path": "elsewhere/b.json", **more}]}
    path = folder / "pets.yaml"
    path.write_text(json.dumps({"sets": {"one": one, "two": two}}))
    return path


def states(path, root, **options):
    return {
        (c.name, c.path and c.path.rsplit("/", 2)[-2]): c.state
        for c in check_files(read_manifest(path), str(root), **options)
    }


def fill(root, images=GOOD, labels=GOOD):
    for name, data in {
        "pets/images.zip": images,
        "pets/labels/a.json": labels,
        "pets/labels/classes.txt": b"dog",
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)


def test_each_file_is_found_beside_its_set_and_compared_once(tmp_path):
    fill(tmp_path)
    path = manifest(tmp_path)
    assert states(path, tmp_path) == {
        ("images.zip", "pets"): "ok",
        ("a.json", "labels"): "ok",
        ("classes.txt", "labels"): "unstated",
        ("a.json", None): "absent",
    }
    (tmp_path / "images.zip").mkdir()  # a folder of that name is no file
    assert states(path, tmp_path)["images.zip", "pets"] == "ok"


@pytest.mark.parametrize("data", [OTHER, GOOD + b"!", b""])
def test_a_file_that_differs_is_named_with_what_was_wanted(tmp_path, data):
    fill(tmp_path, images=data, labels=data)
    found = {c.name: c for c in check_files({"one": read_manifest(manifest(tmp_path))["one"]}, str(tmp_path))}
    assert [found[n].state for n in ("images.zip", "a.json")] == ["differs", "differs"]
    wanted = hashlib.sha256(GOOD).hexdigest() if len(data) == len(GOOD) else f"want {len(GOOD)}"
    assert wanted in found["images.zip"].detail and "as stated by its page" in found["images.zip"].detail
    assert f"md5 {hashlib.md5(data).hexdigest()}; want" in found["a.json"].detail


def test_sizes_alone_read_nothing(tmp_path):
    fill(tmp_path, images=OTHER, labels=OTHER)
    found = states(manifest(tmp_path), tmp_path, sizes_only=True)
    assert found["images.zip", "pets"] == "ok" and found["a.json", "labels"] == "unstated"


def test_files_behind_a_url(tmp_path):
    fill(tmp_path)
    fsspec.filesystem("memory").put(str(tmp_path / "pets"), "/published/pets", recursive=True)
    found = list(check_files(read_manifest(manifest(tmp_path)), "memory://published"))
    assert [c.state for c in found] == ["ok", "ok", "unstated", "absent"]
    assert found[0].path == "memory://published/pets/images.zip"


def call(*arguments):
    return CliRunner().invoke(cli.main, ["datasets", "check", *map(str, arguments)])


def test_the_command_fails_on_a_difference_and_on_nothing_to_compare(tmp_path):
    path = manifest(tmp_path)
    done = call(path, "--root", tmp_path)
    assert done.exit_code == 2 and f"nothing compared: no file of {path}" in done.output
    fill(tmp_path)
    done = call(path, "--root", tmp_path)
    assert done.exit_code == 0 and "1 absent, 2 ok, 1 unstated" in done.output
    fill(tmp_path, labels=OTHER)
    done = call(path, "--root", tmp_path)
    assert done.exit_code == 2 and "1 of 4 files differ" in done.output and "differs   " in done.output
    assert call(path, "--root", tmp_path, "--only", "two").exit_code == 0
    done = call(path, "--only", "three")
    assert done.exit_code == 2 and "no set 'three'; it has one, two" in done.output


def test_a_mixture_checks_what_its_sets_name(tmp_path):
    done = call("glip-t", "--root", tmp_path)
    assert (
        done.exit_code == 2
        and "final_mixed_train_no_coco.json" in done.output
        and "objects365_train.json" in done.output
    )
    done = call("odinw-13", "--root", tmp_path)
    assert done.exit_code == 2 and "names no files to check" in done.output
