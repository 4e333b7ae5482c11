"""Each published format, in its exact layout: what is kept, what is lost and why; wrong files are refused in a line."""

from __future__ import annotations

import json
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import InputError
from pipeline.io.tars import write_tar
from pipeline.readers import visual_genome
from pipeline.readers.registry import READ, load_format
from tests.fixtures.crawl import jpeg
from tests.pipeline.readers import layouts as L
from tests.pipeline.readers.layouts import put, read


def lost(found) -> dict[str, int]:
    return dict(sum((Counter(i.lost) for i in found.images), Counter(found.lost)))


def test_coco_crowds_empty_images_and_broken_boxes(tmp_path):
    found = read("coco", put(tmp_path / "a.json", L.COCO))
    assert found.label_space == ("person", "dog")
    seven, eight, nine = found.images
    assert (seven.key, seven.location.file, seven.size) == ("000000007", "träume/7.jpg", (64, 80))
    assert [r.box for r in seven.regions] == [(0, 0, 5, 5)] and eight.regions == ()
    assert [(r.phrase, r.box, r.ignore) for r in nine.regions] == [
        ("dog", (10.5, 20, 40.5, 60.25), False),
        ("dog", (0, 0, 80, 50), True),
    ]
    assert lost(found) == {
        "box_outside_image": 1, "box_without_area": 1, "bad_box": 1, "unknown_category": 1, "unknown_image": 1,
        "cut_at_edge": 2,
    }  # fmt: skip
    assert nine.verified_absent is None
    assert read("coco", tmp_path / "a.json", name_parts=1).images[0].location.file == "7.jpg"


def test_lvis_knows_only_its_verified_negatives_to_be_absent(tmp_path):
    found = read("lvis", put(tmp_path / "a.json", L.LVIS))
    empty, full = found.images
    assert full.location.file == "train2017/000000391895.jpg"
    assert full.verified_absent == ("baseball_bat", "bow_(weapon)") and empty.verified_absent == ()
    assert [r.phrase for r in full.regions] == ["aerosol_can"]


def test_mdetr_several_spans_a_box_and_two_image_folders(tmp_path):
    found = read("mdetr", put(tmp_path / "a.json", L.MIXED))
    (first,) = found.images  # the second has no annotations
    (region,) = first.regions
    assert region.tokens_positive == ((0, 14), (31, 38)) and first.caption == L.MIXED_CAPTION
    assert region.phrase == f"{L.MIXED_CAPTION[:14]} {L.MIXED_CAPTION[31:38]}"
    told = {
        **L.MIXED,
        "annotations": [*L.MIXED["annotations"], {"image_id": 1, "bbox": [1, 1, 9, 9], "tokens_positive": [[0, 5]]}],
    }
    folders = [i.location.folder for i in read("mdetr", put(tmp_path / "b.json", told)).images]
    assert first.location.folder == "vg" and folders == ["vg", "coco"]
    assert lost(found) == {"span_outside_caption": 1}


def test_openimages_groups_hierarchy_and_verified_negatives(tmp_path):
    boxes = put(tmp_path / "b.csv", L.OI_BOXES)
    roles = {"classes": put(tmp_path / "c.csv", L.OI_CLASSES)}
    plain = read("openimages", boxes, roles)
    assert plain.label_space == ("Animal", "Dog", "Cat", "Tree", "Car", "Tap, or faucet")
    assert all(i.verified_absent is None and i.relative for i in plain.images)
    roles["labels"] = put(tmp_path / "l.csv", L.OI_LABELS)
    assert [i.verified_absent for i in read("openimages", boxes, roles).images] == [("Animal",), ("Animal", "Cat")]
    roles["hierarchy"] = put(tmp_path / "h.json", L.OI_HIERARCHY)
    found = read("openimages", boxes, roles)
    tree, dog = found.images
    assert tree.verified_absent == ("Animal", "Cat", "Dog")  # no animal: neither cat nor dog
    assert dog.verified_absent == ("Cat",)  # the dog is an animal, whatever the label says
    assert (tree.key, tree.location.file) == ("000026e7ee790996", "000026e7ee790996.jpg")
    assert [(r.phrase, r.ignore, r.box) for r in tree.regions] == [
        ("Tree", True, (0.071905, 0.206591, 0.145346, 0.391306))
    ]
    assert lost(found) == {"bad_box": 1, "unknown_category": 1, "box_without_area": 1}


def test_visual_genome_objects(tmp_path):
    roles = {"images": put(tmp_path / "i.json", L.VG_IMAGES)}
    path = put(tmp_path / "o.json", L.VG_OBJECTS)
    found = read("visual_genome_objects", path, roles)
    assert found.label_space == ("street lamp", "trees")
    one, two = found.images
    assert one.location.file == "VG_100K_2/1.jpg" and two.regions == ()
    assert [(r.phrase, r.box) for r in one.regions] == [("trees", (0, 0, 70, 40)), ("street lamp", (10, 0, 80, 40))]
    assert lost(found) == {"box_without_area": 1, "no_name": 1, "cut_at_edge": 1}
    assert [i.key for i in read("visual_genome_objects", path, roles, without_coco=True).images] == ["000000001"]
    rare = read("visual_genome_objects", path, roles, least_boxes=2)
    assert rare.label_space == ("trees",) and lost(rare)["rare_name"] == 1


def test_visual_genome_descriptions_have_the_spans_where_they_were_put(tmp_path, monkeypatch):
    roles = {"images": put(tmp_path / "i.json", L.VG_IMAGES)}
    path = put(tmp_path / "r.json", L.VG_REGIONS)
    (only,) = read("visual_genome_regions", path, roles).images
    assert only.caption == "the clock is green in colour. shade is along the street."
    assert [only.caption[s:e] for r in only.regions for s, e in r.tokens_positive] == [
        "the clock is green in colour", "shade is along the street"
    ]  # fmt: skip
    monkeypatch.setattr(visual_genome, "CAPTION_CHARACTERS", 40)
    assert [i.key for i in read("visual_genome_regions", path, roles).images] == ["000000001-00", "000000001-01"]


def test_voc_counts_pixels_from_one_and_ignores_what_is_difficult(tmp_path):
    put(tmp_path / "Annotations" / "2007_000027.xml", L.VOC)
    found = read("voc", tmp_path / "Annotations")
    (image,) = found.images
    assert image.location.file == "2007_000027.jpg" and image.size == (64, 80)
    assert [(r.phrase, r.box, r.ignore) for r in image.regions] == [
        ("person", (0, 10, 80, 40), False), ("dog", (44.5, 1, 50, 9), True)
    ]  # fmt: skip
    assert found.label_space == ("cat", "dog", "person") and lost(found) == {"bad_box": 1}
    ids = put(tmp_path / "train.txt", "2007_000027  1\n2007_000032 -1\n")
    assert len(read("voc", tmp_path / "Annotations", {"ids": ids}).images) == 1


def test_imagenet_boxes_count_from_nought_and_synsets_have_names(tmp_path):
    put(tmp_path / "Annotation" / "n01440764" / "n01440764_10040.xml", L.IMAGENET)
    words = put(
        tmp_path / "LOC_synset_mapping.txt", "n01440764 tench, Tinca tinca\nn01443537 goldfish, Carassius auratus\n"
    )
    found = read("voc", tmp_path / "Annotation", {"classes": words}, image_suffix=".JPEG", first_pixel=0)
    (image,) = found.images
    assert image.location.file == "n01440764/n01440764_10040.JPEG" and image.key == "n01440764%2Fn01440764_10040"
    assert [(r.phrase, r.box) for r in image.regions] == [("tench", (0, 9, 80, 64))]
    assert found.label_space == ("tench", "goldfish")


def test_imagenet_boxes_are_of_the_stated_size_and_words_stand_for_synsets(tmp_path):
    """As the archive has it: sizes that are not the image's, dogs called by their words, corners exchanged."""

    def xml(label: str, corners: tuple[int, ...]) -> str:
        box = "".join(f"<{n}>{v}</{n}>" for n, v in zip(("xmin", "ymin", "xmax", "ymax"), corners))
        return L.IMAGENET.replace("<name>n01440764</name>", f"<name>{label}</name>").replace(
            "<xmin>0</xmin><ymin>9</ymin><xmax>79</xmax><ymax>63</ymax>", box
        )

    for n, (label, corners) in enumerate(
        {
            "n01440764": (0, 16, 39, 31),
            "Tinca_tinca": (39, 16, 0, 31),
            "crane": (0, 0, 79, 63),
            "cat": (0, 0, 9, 9),
        }.items()
    ):
        put(tmp_path / "Annotation" / "n01440764" / f"n01440764_{n}.xml", xml(label, corners))
    put(tmp_path / "Annotation" / "n02012849" / "n02012849_1.xml", xml("crane", (0, 0, 79, 63)))
    lines = ["n01440764 tench, Tinca tinca", "n02012849 crane", "n03126707 crane"]
    words = put(tmp_path / "words.txt", "\n".join(lines) + "\n")
    found = read(
        "voc", tmp_path / "Annotation", {"classes": words}, image_suffix=".JPEG", first_pixel=0, boxes="stated_size"
    )
    assert [[(r.phrase, r.box) for r in image.regions] for image in found.images] == [
        [("tench", (0, 0.25, 0.5, 0.5))], [("tench", (0, 0.25, 0.5, 0.5))],
        [], [],  # of two synsets called crane it is neither's folder; no synset is called cat
        [("crane", (0, 0, 1, 1))],
    ]  # fmt: skip
    assert all(image.relative and image.size is None for image in found.images)
    assert lost(found) == {"unknown_category": 2}
    with pytest.raises(InputError, match="option boxes: found 'shares'; want image or stated_size"):
        read("voc", tmp_path / "Annotation", boxes="shares")


def test_flickr30k_spans_come_from_the_markup(tmp_path):
    put(tmp_path / "Annotations" / "1000092795.xml", L.FLICKR_XML)
    put(tmp_path / "Sentences" / "1000092795.txt", L.FLICKR_SENTENCES)
    first, second = read("flickr30k", tmp_path / "Annotations", {"sentences": tmp_path / "Sentences"}).images
    assert first.caption == "Two young guys with shaggy hair look at their hands ."
    assert [(r.phrase, r.box) for r in first.regions] == [
        ("Two young guys", (0, 0, 40, 60)), ("their hands", (4, 4, 9, 9))
    ]  # fmt: skip
    assert first.uncertain == () and first.key == "1000092795_0"  # "shaggy hair" is marked as not visual
    (guys,) = second.regions
    assert [second.caption[s:e] for s, e in guys.tokens_positive] == ["Guys", "the same guys"]
    assert [second.caption[s:e] for s, e in second.uncertain] == ["the garden"]
    assert second.lost == {"not_in_this_sentence": 1}


def test_odvg_detection_and_grounding(tmp_path):
    found = read("odvg_detection", put(tmp_path / "d.jsonl", L.lines(L.ODVG_DETECTION)))
    assert found.label_space == ("dog", "person") and found.images[1].regions == ()
    assert [(r.phrase, r.box) for r in found.images[0].regions] == [("dog", (1, 2, 30, 40))]
    assert lost(found) == {"box_without_area": 1, "unknown_category": 1}
    mapped = {"classes": put(tmp_path / "map.json", {"10": "cat", "0": "person", "1": "dog"})}
    assert read("odvg_detection", tmp_path / "d.jsonl", mapped).label_space == ("person", "dog", "cat")
    first, again = read("odvg_grounding", put(tmp_path / "g.jsonl", L.lines(L.ODVG_GROUNDING))).images
    assert [(r.box, r.tokens_positive) for r in first.regions] == [
        ((1, 2, 30, 40), ((13, 18),)), ((40, 2, 60, 30), ((13, 18),)), ((1, 2, 30, 40), ((0, 5),))
    ]  # fmt: skip
    assert first.lost == {"no_span": 1}  # "dog" alone is there twice
    assert again.location == first.location and again.key != first.key


@pytest.mark.parametrize("form", ["tar", "parquet", "jsonl"])
def test_grit_as_img2dataset_leaves_it(tmp_path, form):
    path = tmp_path / f"00000.{form}"
    if form == "tar":
        sample = {"jpg": jpeg(1), "txt": b"x", "json": json.dumps(L.GRIT).encode()}
        write_tar(path, iter([("000000012", sample), ("000000013", {"json": b"{}", "txt": b"no image"})]))
    elif form == "parquet":
        rows = [{**L.GRIT, "status": "success"}, {**L.GRIT, "key": "000000013", "status": "failed_to_download"}]
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        put(path, L.lines([L.GRIT, L.GRIT]))
    (image,) = read("grit", path).images
    assert [(r.phrase, r.box, r.score, r.annotator) for r in image.regions] == [
        ("a paper cover", (0.019, 0.31, 0.965, 0.998), 0.797, "grit"),
        ("a wire hanger", (0.019, 0.03, 0.965, 0.998), 0.81, "grit"),
    ]
    location = image.location
    if form == "tar":
        assert path.read_bytes()[location.offset : location.offset + location.size] == jpeg(1)
    else:
        assert location.file == "00000/000000012.jpg"
    (image,) = read("grit", path, expressions=True).images
    assert [r.box for r in image.regions] == [(0, 0.31, 1, 0.998)] and image.lost == {
        "span_outside_caption": 1,
        "cut_at_edge": 1,
    }


def test_glip_records_of_both_versions(tmp_path):
    path = put(tmp_path / "x.label.tsv", L.tsv({"0": L.GLIP_V1, "1": [L.GLIP_V2], "2": L.GLIP_V1}))
    images = put(tmp_path / "x.tsv", L.image_tsv(["0", "1", "2", "2"]))
    one, two, _ = read("glip_captions", path, {"images": images}).images
    assert [(r.phrase, r.tokens_positive, r.score, r.box) for r in one.regions] == [
        ("a red car", ((0, 9),), 0.79, (1, 2, 31, 41)), ("car", ((6, 9),), 0.99, (5, 5, 80, 21))
    ]  # fmt: skip
    assert [(r.phrase, r.score, r.box) for r in two.regions] == [
        ("red car", 0.8, (1, 2, 31, 41)), ("red car", 0.6, (40, 2, 61, 41))
    ]  # fmt: skip
    assert two.boxless == ((16, 19),) and not two.lost  # the teacher did not find the dog; it is not absent for that
    start = images.read_bytes()[one.location.offset :][: one.location.size]
    assert one.location.base64 and start.startswith(b"/9j/")
    assert read("glip_captions", path).images[0].location.file == "0.jpg"


def test_two_images_of_one_id_are_named(tmp_path):
    twice = {**L.COCO, "images": L.COCO["images"] * 2}
    with pytest.raises(InputError, match="duplicate image id 7"):
        read("coco", put(tmp_path / "a.json", twice))


def test_an_unknown_companion_or_option_is_named(tmp_path):
    path = put(tmp_path / "a.json", L.COCO)
    with pytest.raises(InputError, match="unknown option 'without_coco'"):
        read("coco", path, without_coco=True)
    with pytest.raises(InputError, match="unknown companion 'classes'"):
        read("coco", path, {"classes": path})
    with pytest.raises(InputError, match=r"want `companions: \{classes: FILE\}`"):
        read("openimages", path)


def test_every_format_says_what_it_reads():
    assert all(load_format(name).reads for name in READ)
