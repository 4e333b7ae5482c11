"""The troubles that published labels have, through every reader: boxes, spans, names and images
that are not as they should be."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config import IngestConfig
from pipeline.data.keys import shard_key
from pipeline.data.manifests import read_manifest
from pipeline.errors import InputError, RunError
from pipeline.io.tars import read_tar, write_tar
from pipeline.readers import image_store
from pipeline.readers.base import CUT
from pipeline.readers.registry import READ, load_format
from tests.fixtures.crawl import jpeg
from tests.pipeline.readers import layouts as L
from tests.pipeline.readers.layouts import put, read
from tests.pipeline.readers.sets import (
    BOXES,
    CAPTION,
    HEIGHT,
    KEPT,
    LOST,
    SETS,
    SPANS,
    WIDTH,
    Set,
    coco,
    glip,
    mdetr,
    odvg_detection,
    odvg_grounding,
    only_record,
    openimages,
    put_images,
    run,
    visual_genome,
    voc,
    xywh,
)


def test_every_reader_has_its_set_here():
    assert set(SETS) == set(READ)


@pytest.mark.parametrize("name", READ)
def test_boxes_outside_and_without_area_are_lost_by_name_and_the_others_cut_at_the_edge(tmp_path, name):
    path, companions, options = SETS[name](tmp_path, list(BOXES.values()))
    (image,) = read(name, path, companions, **options).images
    scale = (WIDTH, HEIGHT) * 2 if image.relative else (1, 1, 1, 1)
    assert [tuple(v * s for v, s in zip(r.box, scale, strict=True)) for r in image.regions] == [
        pytest.approx(b) for b in KEPT
    ]
    assert image.lost == {**LOST, CUT: 1}


@pytest.mark.parametrize("name", READ)
def test_an_image_without_boxes_is_an_image(tmp_path, name):
    path, companions, options = SETS[name](tmp_path, [])
    images = read(name, path, companions, **options).images
    # images are known by their boxes, or a caption by its descriptions, or the set's readers leave them out
    if name in ("openimages", "visual_genome_regions", "mdetr", "refcoco"):
        assert not images
    else:
        assert len(images) == 1 and images[0].regions == () and images[0].lost == {}


def test_images_that_a_set_leaves_out_are_counted_and_no_loss(tmp_path):
    path, _, _ = mdetr(tmp_path, [BOXES["good"]])
    put(tmp_path / "images" / "1.jpg", "").write_bytes(jpeg(1, (WIDTH, HEIGHT)))
    data = json.loads(path.read_text())
    data["images"] += [data["images"][0] | {"id": n} for n in range(2, 9)]
    report = run(tmp_path, "mdetr", (put(path, data), {}, {}), config=IngestConfig())
    assert report.tallies["samples"].dropped == {"left_out": 7} and report.tallies["samples"].kept == 1


@pytest.mark.parametrize("name", READ)
def test_spans_and_names_beyond_ascii_are_kept_as_they_stand(tmp_path, name):
    path, companions, options = SETS[name](tmp_path, [BOXES["good"]])
    (image,) = read(name, path, companions, **options).images
    (region,) = image.regions
    if load_format(name).kind == "detection":
        assert region.phrase == "café 👩‍🚀" and image.caption is None
    elif name == "visual_genome_regions":
        assert [image.caption[s:e] for s, e in region.tokens_positive] == ["café 0"]
    else:
        spans = SPANS[:1] if name == "grit" else SPANS  # GRIT's chunks have one span each
        assert image.caption == CAPTION and region.tokens_positive == tuple(spans)
        assert region.phrase == " ".join(CAPTION[s:e] for s, e in spans)


def nameless(name: str, root: Path) -> Set:
    """The set with the class's name empty, and with nothing else changed."""
    path, companions, options = SETS[name](root, [BOXES["good"]])
    for file in [*companions.values(), *(path.glob("*.xml") if path.is_dir() else [path])]:
        file.write_text(file.read_text().replace("café 👩‍🚀", " " if name == "odvg_detection" else ""))
    return path, companions, options


@pytest.mark.parametrize("name", ["coco", "lvis", "voc", "odvg_detection", "openimages"])
def test_a_class_without_a_name_is_none(tmp_path, name):
    """It would be a prompt's word, and the phrase of a box."""
    path, companions, options = nameless(name, tmp_path)
    found = read(name, path, companions, **options)
    (image,) = found.images
    assert found.label_space == () and image.regions == () and image.lost == {"unknown_category": 1}


def test_a_label_maps_class_without_a_name_is_none(tmp_path):
    path, _, _ = odvg_detection(tmp_path, [BOXES["good"]])
    found = read("odvg_detection", path, {"classes": put(tmp_path / "c.json", {"0": "", "1": "dog"})})
    assert found.label_space == ("dog",) and found.images[0].lost == {"unknown_category": 1}


def listed_twice(name: str, root: Path) -> Set:
    path, companions, options = SETS[name](root, [BOXES["good"]])
    if name in ("voc", "flickr30k"):
        return path, {**companions, "ids": put(root / "ids.txt", "1\n1\n")}, options
    data = json.loads(path.read_text())
    if isinstance(data, list):
        return put(path, data * 2), companions, options
    return put(path, {**data, "images": data["images"] * 2}), companions, options


@pytest.mark.parametrize(
    "name", [n for n in READ if not n.startswith(("odvg", "grit", "glip", "openimages", "yolo", "hf"))]
)
def test_an_image_that_is_there_twice_is_named(tmp_path, name):
    path, companions, options = listed_twice(name, tmp_path)
    with pytest.raises(InputError, match=r"duplicate image id \S+"):
        read(name, path, companions, **options)


@pytest.mark.parametrize("name", ["coco", "mdetr"])
@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"id": 1, "key": "000000002"}, {"id": 2}),
        ({"id": 1}, {"id": "000000001"}),
        ({"id": "a.b"}, {"id": 3, "key": "a%2Eb"}),
    ],
)
def test_two_images_of_one_key_are_refused_wherever_the_key_is_from(tmp_path, name, first, second):
    """A shard cannot have both: the labels of one would be the other's."""
    path, companions, options = SETS[name](tmp_path, [])
    data = json.loads(path.read_text())
    (image,) = data["images"]
    data["images"] = [image | first, image | {"file_name": "2.jpg"} | second]
    with pytest.raises(InputError, match="two images have the key") as error:
        read(name, put(path, data), companions, **options)
    assert repr(first["id"]) in str(error.value) and repr(second["id"]) in str(error.value)


def test_a_line_called_as_another_line_is_counted_is_refused(tmp_path):
    path, _, _ = odvg_grounding(tmp_path, [])
    line = json.loads(path.read_text())
    numbers = [i.key for i in read("odvg_grounding", put(path, L.lines([line, line]))).images]
    with pytest.raises(InputError, match=f"two images have the key '{numbers[1]}'"):
        read("odvg_grounding", put(path, L.lines([line | {"key": numbers[1]}, line])))


@pytest.mark.parametrize("name", ["coco", "mdetr"])
@pytest.mark.parametrize("side", ["images", "annotations"])
def test_a_whole_float_is_the_number_that_it_was_before_pandas(tmp_path, name, side):
    path, companions, options = SETS[name](tmp_path, [BOXES["good"]])
    data = json.loads(path.read_text())
    data[side][0]["id" if side == "images" else "image_id"] = 1.0
    (image,) = read(name, put(path, data), companions, **options).images
    assert image.key == "000000001" and len(image.regions) == 1


@pytest.mark.parametrize("name", ["coco", "mdetr"])
@pytest.mark.parametrize(("named", "words"), [("1", "'1'"), (2, "2"), (None, "None"), (1.5, "1.5"), (True, "True")])
def test_labels_that_are_all_of_other_images_are_refused_with_an_id_of_each(tmp_path, name, named, words):
    path, companions, options = SETS[name](tmp_path, [BOXES["good"]])
    data = json.loads(path.read_text())
    data["annotations"][0]["image_id"] = named
    with pytest.raises(InputError, match=rf"first annotation's image is {words}, the first image's id 1;") as error:
        run(tmp_path, name, (put(path, data), companions, options))
    assert str(path) in str(error.value) and not list(tmp_path.glob("out/*"))


def test_labels_of_a_whole_set_may_stand_with_the_images_of_a_split_but_not_by_ids_of_another_kind(tmp_path):
    path, _, _ = coco(tmp_path, [BOXES["good"]])
    put(tmp_path / "images" / "1.jpg", "").write_bytes(jpeg(1, (WIDTH, HEIGHT)))
    data = json.loads(path.read_text())
    (row,) = data["annotations"]
    data["annotations"] += [row | {"image_id": n} for n in range(2, 100)]
    report = run(tmp_path, "coco", (put(path, data), {}, {}), config=IngestConfig())
    assert report.tallies["regions"].kept == 1 and report.tallies["regions"].dropped == {"unknown_image": 98}
    data["annotations"] += [row | {"image_id": "1"}]
    with pytest.raises(RunError, match=r"set s: 1 of 2 regions lost \({'bad_image_id': 1}\)"):
        run(tmp_path, "coco", (put(path, data), {}, {}), config=IngestConfig())


def test_of_crawled_records_of_one_key_the_first_stays_and_the_others_are_counted(tmp_path):
    path, _, _ = glip(tmp_path, [BOXES["good"]])
    path.write_text(path.read_text() + path.read_text().replace("1\t", "2\t", 1))
    images = put(tmp_path / "i.tsv", L.image_tsv(["1", "1", "3"]))  # one twice, one without labels; 2 has no image
    report = run(tmp_path, "glip_captions", (path, {"images": images}, {}))
    assert (
        report.tallies["samples"].dropped == {"duplicate_key": 1, "bad_record": 1}
        and report.tallies["samples"].kept == 1
    )
    assert report.tallies["regions"].dropped == {"unknown_image": 1} and report.tallies["regions"].kept == 1
    first, other = path.read_text().splitlines()
    path.write_text(
        "\n".join([first, other, first.replace("0.9", "0.1"), other, first])
    )  # three of 1, two of 2, which has no image
    report = run(tmp_path, "glip_captions", (path, {"images": put(tmp_path / "i.tsv", L.image_tsv(["1"]))}, {}))
    assert report.tallies["samples"].dropped == {"duplicate_key": 2} and report.tallies["samples"].kept == 1
    assert report.tallies["regions"].dropped == {"unknown_image": 2} and only_record(tmp_path).regions[0].score == 0.9
    sample = {"jpg": jpeg(1), "json": json.dumps(L.GRIT).encode()}
    for n in (0, 1):
        write_tar(tmp_path / "grit" / f"0000{n}.tar", iter([("000000012", sample)]))
    report = run(tmp_path, "grit", (tmp_path / "grit", {}, {}))
    assert report.tallies["samples"].dropped == {"duplicate_key": 1} and report.tallies["samples"].kept == 1


def test_categories_may_have_texts_for_numbers(tmp_path):
    images = [{"id": 1, "file_name": "1.jpg", "height": HEIGHT, "width": WIDTH}]
    rows = [
        {"id": i, "image_id": 1, "category_id": c, "bbox": xywh(BOXES["good"])} for i, c in enumerate(("2", "1", 1))
    ]
    categories = [{"id": "1", "name": "cat"}, {"id": "2", "name": "dog"}]
    found = read("coco", put(tmp_path / "a.json", {"images": images, "annotations": rows, "categories": categories}))
    assert [r.phrase for r in found.images[0].regions] == ["dog", "cat"] and found.label_space == ("cat", "dog")
    assert found.images[0].lost == {"unknown_category": 1}  # a number is no text


def test_categories_may_have_gone_through_pandas_or_have_no_name(tmp_path):
    images = [{"id": 1, "file_name": "1.jpg", "height": HEIGHT, "width": WIDTH}]
    rows = [{"id": i, "image_id": 1.0, "category_id": c, "bbox": xywh(BOXES["good"])} for i, c in enumerate((1.0, 2.0))]
    categories = [{"id": 1, "name": "cat"}, {"id": 2, "name": None}]
    found = read("coco", put(tmp_path / "a.json", {"images": images, "annotations": rows, "categories": categories}))
    assert [r.phrase for r in found.images[0].regions] == ["cat"] and found.label_space == ("cat",)
    assert found.images[0].lost == {"unknown_category": 1}


def test_ids_of_one_name_are_one_class_and_it_is_told(tmp_path, caplog):
    """As a labelling tool exports its sets: the first class once more, as the parent of all."""
    images = [{"id": 1, "file_name": "1.jpg", "height": HEIGHT, "width": WIDTH}]
    rows = [{"id": i, "image_id": 1, "category_id": c, "bbox": [i, 1, 9, 9]} for i, c in enumerate((0, 1, 2))]
    categories = [{"id": 0, "name": "fish"}, {"id": 1, "name": "fish"}, {"id": 2, "name": "ray"}]
    found = read("coco", put(tmp_path / "a.json", {"images": images, "annotations": rows, "categories": categories}))
    assert [r.phrase for r in found.images[0].regions] == ["fish", "fish", "ray"]
    assert found.label_space == ("fish", "ray") and "category 'fish' has several ids" in caplog.text
    categories[1] = {"id": 0, "name": "shark"}
    with pytest.raises(InputError, match="duplicate category 0: 'fish' and 'shark'"):
        read("coco", put(tmp_path / "a.json", {"images": images, "annotations": rows, "categories": categories}))


def test_grits_broken_rows_and_tars_cost_themselves(tmp_path):
    good = {"jpg": jpeg(1), "json": json.dumps(L.GRIT).encode()}
    samples = [(f"{i:09d}", dict(good)) for i in range(20)]
    samples[3][1]["json"] = b"{broken"
    samples[4][1]["json"] = json.dumps({**L.GRIT, "noun_chunks": None}).encode()
    del samples[5][1]["jpg"]
    (tmp_path / "grit").mkdir()
    whole = tmp_path / "grit" / "00000.tar"
    write_tar(whole, samples)
    other = tmp_path / "grit" / "00001.tar"
    write_tar(other, [(f"{i:09d}", good) for i in range(100, 110)])
    other.write_bytes(other.read_bytes()[:5000])  # cut off in its first sample or later
    kept = sum(1 for _ in read_tar(other))
    report = run(tmp_path, "grit", (tmp_path / "grit", {}, {}))
    assert report.tallies["samples"].kept == 17 + kept
    assert report.tallies["samples"].dropped == {"bad_labels": 2, "no_image": 1, "truncated_tar": 1}
    for key in ("bad", "worse"):
        write_tar(tmp_path / "none" / f"{key}.tar", [(f"{i:09d}", {**good, "json": b"[]"}) for i in range(3)])
    with pytest.raises(InputError, match=r"bad\.tar: 000000000\.json: want GRIT .* found \[\]"):
        run(tmp_path, "grit", (tmp_path / "none", {}, {}))


@pytest.mark.parametrize("file", ["x" * 300 + ".jpg", "a\0b.jpg", "denied.jpg"])
def test_a_file_that_cannot_be_read_costs_itself(tmp_path, file, monkeypatch):
    put_images(tmp_path)
    images = [{"id": 1, "file_name": "1.jpg"}, {"id": 2, "file_name": file}]
    path = put(tmp_path / "a.json", {"images": images, "annotations": [], "categories": [{"id": 1, "name": "cat"}]})
    if file == "denied.jpg":
        (tmp_path / "images" / file).write_bytes(b"x")
        real = image_store.read_small

        def read(path: str) -> bytes:
            if path.endswith(file):
                raise PermissionError(13, "Permission denied")
            return real(path)

        monkeypatch.setattr(image_store, "read_small", read)
    report = run(tmp_path, "coco", (path, {}, {}))
    assert report.failed == [] and report.tallies["samples"].kept == 1
    assert report.tallies["samples"].dropped == {"unreadable_file": 1}


def test_descriptions_without_words_are_counted(tmp_path):
    row = {"x": 1, "y": 1, "width": 9, "height": 9}
    rows = [{**row, "phrase": text} for text in ("a cup", "", ".", None)] + ["nonsense"]
    put_images(tmp_path)
    report = run(tmp_path, "visual_genome_regions", visual_genome(tmp_path, "regions", rows))
    assert report.tallies["regions"].kept == 1 and report.tallies["regions"].dropped == {"no_phrase": 4}


def test_openimages_saved_again_with_an_index_is_read(tmp_path):
    path, companions, options = openimages(tmp_path, [BOXES["good"]])
    head, *lines = path.read_text().splitlines()
    path.write_text("\n".join([f",{head}", *(f"{n},{line}" for n, line in enumerate(lines))]) + "\n")
    assert len(read("openimages", path, companions, **options).images[0].regions) == 1


def test_sets_of_one_name_are_not_mixed(tmp_path):
    for name in ("a", "b"):
        entry = {"kind": "detection", "format": "coco", "annotations": f"{name}.json", "images_folder": "images"}
        put(tmp_path / f"{name}.yaml", {"sets": {"train": entry}})
    shares = [{"manifest": str(tmp_path / f"{name}.yaml"), "set": "train"} for name in ("a", "b")]
    mixed = put(tmp_path / "mixed.yaml", {"mixture": shares})
    with pytest.raises(InputError, match=r"mixed\.yaml: two sets 'train', one of them in .*b\.yaml"):
        read_manifest(mixed)
    put(tmp_path / "mixed.yaml", {"mixture": [shares[0]] * 2})
    assert list(read_manifest(mixed)) == ["train"]


@given(st.lists(st.text("ab/._%~é", min_size=1, max_size=6), unique=True, max_size=6))
def test_keys_that_fit_are_as_many_as_there_were(keys):
    fitting = [shard_key(key) for key in keys]
    assert len(set(fitting)) == len(keys) and not any({"/", "."} & set(key) for key in fitting)
    assert all(fit == key for fit, key in zip(fitting, keys, strict=True) if not {"/", ".", "%"} & set(key))


def coco_of(root: Path, file: str, **more: object):
    images = [{"id": 1, "file_name": file}]
    data = {"images": images, "annotations": [], "categories": [{"id": 1, "name": "cat"}]}
    return run(root, "coco", (put(root / "a.json", data), {}, {}), config=IngestConfig(), **more)


def test_a_wrong_path_is_told_with_the_path(tmp_path):
    with pytest.raises(
        RunError,
        match=r"1 of 1 images lost .*; the first: .*wrong/1\.jpg: no such file; .*/images is empty \(more in .*s-0000",
    ):
        coco_of(tmp_path, "wrong/1.jpg")
    with pytest.raises(InputError, match=r"images_folder: .*/imags: no such folder"):
        coco_of(tmp_path, "1.jpg", images_folder="imags")


def test_labels_may_name_where_their_images_lie(tmp_path):
    put(tmp_path / "elsewhere" / "1.jpg", "").write_bytes(jpeg(1))
    assert coco_of(tmp_path, str(tmp_path / "elsewhere" / "1.jpg")).tallies["samples"].kept == 1


def test_a_cut_xml_is_told_as_that(tmp_path):
    path, companions, options = voc(tmp_path, [BOXES["good"]])
    file = path / "1.xml"
    file.write_text(file.read_text()[:-20])
    with pytest.raises(InputError, match=r"1\.xml: want .* found one that is cut off or broken \(.*line 1"):
        read("voc", path, companions, **options)


def test_a_wrong_option_is_named(tmp_path):
    path, companions, _ = coco(tmp_path, [BOXES["good"]])
    with pytest.raises(InputError, match=r"options\.name_parts: found 'two'; want a number"):
        read("coco", path, companions, name_parts="two")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("sets:\n  a: {kind: detection}\n  b: {}\n  a: {}\n", r"m\.yaml: line 4: .*duplicate key 'a'"),
        ("sets:\n  a: [\n", r"m\.yaml: line 3: not YAML"),
        (
            "sets:\n  a: {kind: detection, format: coco, anotations: x}\n",
            r"sets\.a\.anotations: .*did you mean annotations\?",
        ),
    ],
)
def test_slips_in_a_manifest_are_one_line(tmp_path, text, words):
    with pytest.raises(InputError, match=words) as told:
        read_manifest(put(tmp_path / "m.yaml", text))
    assert "\n" not in str(told.value)
