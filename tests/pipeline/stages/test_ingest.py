"""Human labels into shards: spans and boxes go together, everything that goes is counted, errors name the field."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import fsspec
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config import IngestConfig
from pipeline.data.records import GroundingRecord, Region
from pipeline.errors import InputError, RunError
from pipeline.io.tars import read_tar, write_tar
from pipeline.readers.base import ImageLocation, LabelledImage, SetFiles
from pipeline.readers.registry import load_format
from pipeline.readers.renaming import ClassRenaming
from pipeline.stages.jobs import Ingest
from tests.fixtures.crawl import jpeg
from tests.fixtures.labelled_sets import read_set
from tests.pipeline.readers import layouts
from tests.pipeline.readers.layouts import coco_of

CAPTION = "a red car near a blue car"


def read_coco(path):
    return read_set(load_format("coco"), SetFiles("set", str(path)))


def read_mdetr(path):
    return read_set(load_format("mdetr"), SetFiles("set", str(path)))


def write_sets(root: Path) -> Path:
    """A COCO set of 5 images (one broken, one missing) and an MDETR set of 2, with a manifest."""
    for name in ("det", "gr"):
        (root / name).mkdir(parents=True)
    for i in range(1, 4):
        (root / "det" / f"{i}.jpg").write_bytes(jpeg(i))
    (root / "det" / "4.jpg").write_bytes(b"broken")
    coco = {
        "images": [{"id": i, "file_name": f"{i}.jpg", "height": 64, "width": 80} for i in range(1, 6)],
        "categories": [{"id": 7, "name": "car"}, {"id": 3, "name": "tree"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 7, "bbox": [10, 10, 20, 30]},
            {"id": 2, "image_id": 1, "category_id": 3, "bbox": [70, 50, 30, 30], "iscrowd": 1},  # clipped to 80 x 64
            {"id": 3, "image_id": 2, "category_id": 7, "bbox": [0, 0, 0, 5]},
            {"id": 4, "image_id": 2, "category_id": 9, "bbox": [0, 0, 5, 5]},
            {"id": 5, "image_id": 2, "category_id": 7, "bbox": [90, 0, 5, 5]},
            {"id": 6, "image_id": 99, "category_id": 7, "bbox": [0, 0, 5, 5]},
            {"id": 7, "image_id": 4, "category_id": 7, "bbox": [0, 0, 5, 5]},
        ],
    }
    (root / "det.json").write_text(json.dumps(coco))
    for i in (1, 2):
        (root / "gr" / f"{i}.jpg").write_bytes(jpeg(10 + i))
    mdetr = {
        "images": [{"id": i, "file_name": f"{i}.jpg", "caption": CAPTION, "height": 64, "width": 80} for i in (1, 2)],
        "annotations": [
            {"id": 1, "image_id": 1, "bbox": [1, 2, 10, 10], "tokens_positive": [[2, 9]]},
            {"id": 2, "image_id": 1, "bbox": [20, 2, 10, 10], "tokens_positive": [[17, 21], [22, 25]]},
            {"id": 3, "image_id": 2, "bbox": [1, 2, 10, 10], "tokens_positive": []},
            {"id": 4, "image_id": 2, "bbox": [1, 2, 10, 10], "tokens_positive": [[20, 99]]},
        ],
    }
    (root / "gr.json").write_text(json.dumps(mdetr))
    (root / "sets.yaml").write_text(
        "sets:\n"
        "  det: {kind: detection, format: coco, annotations: det.json, images_folder: det, licence: CC0-1.0}\n"
        "  gr: {kind: grounding, format: mdetr, annotations: gr.json, images_folder: gr}\n"
        "  web: {kind: crawl, format: img2dataset, shards_pattern: 'web/*.tar'}\n"
    )
    return root / "sets.yaml"


CONFIG = IngestConfig(samples_per_shard=2, max_failed_share=0.7)


def records(folder: Path, pattern: str) -> list[GroundingRecord]:
    return [
        GroundingRecord.model_validate_json(s.files["json"]) for p in sorted(folder.glob(pattern)) for s in read_tar(p)
    ]


def test_ingest_counts_and_writes(tmp_path):
    report = Ingest(settings=CONFIG, manifest=write_sets(tmp_path), out=tmp_path / "out").run()
    assert report.tallies["samples"].dropped == {"broken_image": 1, "image_missing": 1, "no_usable_region": 2}
    assert report.tallies["samples"].kept == 3
    assert report.tallies["regions"].dropped == {
        "box_outside_image": 1, "box_without_area": 1, "image_lost": 1, "no_span": 1, "span_outside_caption": 1,
        "unknown_category": 1, "unknown_image": 1,
    }  # fmt: skip
    assert report.tallies["regions"].kept == 4
    found = records(tmp_path / "out", "det-*.tar")
    assert [r.key for r in found] == ["000000001", "000000003"]
    car, crowd = found[0].regions
    assert (car.phrase, car.box, car.ignore) == ("car", (10, 10, 30, 40), False)
    assert (crowd.phrase, crowd.box, crowd.ignore) == ("tree", (70, 50, 80, 64), True)
    card = json.loads((tmp_path / "out" / "det.dataset.json").read_text())
    assert card["label_space"] == ["tree", "car"] and card["licence"] == "CC0-1.0"
    (first,) = records(tmp_path / "out", "gr-*.tar")
    assert [(r.phrase, r.tokens_positive) for r in first.regions] == [
        ("red car", ((2, 9),)),
        ("blue car", ((17, 21), (22, 25))),
    ]


def test_ingest_again_does_nothing_and_a_changed_image_is_noticed(tmp_path):
    manifest = write_sets(tmp_path)
    Ingest(settings=CONFIG, manifest=manifest, out=tmp_path / "out").run()
    assert Ingest(settings=CONFIG, manifest=manifest, out=tmp_path / "out").run().done == 0
    (tmp_path / "gr" / "2.jpg").write_bytes(jpeg(99) + b"\0")
    assert Ingest(settings=CONFIG, manifest=manifest, out=tmp_path / "out", only="gr").run().done == 1


def renamed(manifest: Path, **sets: str) -> Path:
    text = manifest.read_text()
    for name, names in sets.items():
        text = text.replace(f"  {name}: {{", f"  {name}: {{names: {names}, ")
    manifest.write_text(text)
    return manifest


def test_a_manifest_renames_classes_and_other_names_are_another_ingest(tmp_path):
    manifest = write_sets(tmp_path)
    Ingest(settings=CONFIG, manifest=manifest, out=tmp_path / "out", only="det").run()
    before = records(tmp_path / "out", "det-*.tar")
    renamed(manifest, det="{car: vehicle}")
    assert Ingest(settings=CONFIG, manifest=manifest, out=tmp_path / "out", only="det").run().done == 3
    after = records(tmp_path / "out", "det-*.tar")
    assert [[r.phrase.replace("car", "vehicle") for r in x.regions] for x in before] == [
        [r.phrase for r in x.regions] for x in after
    ]
    assert [[r.box for r in x.regions] for x in before] == [[r.box for r in x.regions] for x in after]
    assert json.loads((tmp_path / "out" / "det.dataset.json").read_text())["label_space"] == ["tree", "vehicle"]


@pytest.mark.parametrize(
    ("sets", "words"),
    [
        ({"det": "{cra: vehicle}"}, "set det: names: found 'cra' .did you mean car"),
        ({"det": "{car: ' '}"}, "names: found no new name of 'car'"),
        ({"gr": "{car: vehicle}"}, "set gr: names are of detection sets"),
    ],
)
def test_names_that_are_of_no_class_are_refused(tmp_path, sets, words):
    manifest = renamed(write_sets(tmp_path), **sets)
    with pytest.raises(InputError, match=words):
        Ingest(settings=CONFIG, manifest=manifest, out=tmp_path / "out", only=next(iter(sets))).run()


SPACE = ("a", "b", "c", "d", "e")


@given(
    st.dictionaries(st.sampled_from(SPACE), st.sampled_from(("a", "b", "x", "y"))),
    st.lists(st.tuples(st.sampled_from(SPACE), st.integers(0, 3))),
    st.none() | st.sets(st.sampled_from(SPACE)),
    st.sets(st.sampled_from(SPACE)),
)
def test_a_renamed_class_is_absent_only_where_all_that_it_is_made_of_are(names, boxes, absent, boxless):
    regions = tuple(dict.fromkeys(Region(box=(x, 0, x + 1, 1), phrase=name) for name, x in boxes))
    item = LabelledImage(
        "k", ImageLocation("f"), regions=regions, boxless_names=tuple(sorted(boxless)),
        verified_absent=None if absent is None else tuple(sorted(absent - {name for name, _ in boxes})),
    )  # fmt: skip
    renaming = ClassRenaming.of(names, SPACE, "set")
    made = renaming.apply(item)

    def new(name: str) -> str:
        return names.get(name, name)

    assert {(r.phrase, r.box) for r in made.regions} == {(new(r.phrase), r.box) for r in regions}
    assert len(made.regions) + made.lost["same_box_again"] == len(regions)
    assert set(made.boxless_names) == {new(name) for name in boxless}
    if item.verified_absent is None:
        assert made.verified_absent is None
    else:
        for name in {new(n) for n in SPACE}:
            parts = {n for n in SPACE if new(n) == name}
            there = name in {r.phrase for r in made.regions} or name in made.boxless_names
            assert (name in made.verified_absent) == (parts <= set(item.verified_absent) and not there)
    assert renaming.header({"label_space": SPACE})["label_space"] == list(dict.fromkeys(map(new, SPACE)))


def test_two_workers_write_the_same_bytes(tmp_path):
    manifest = write_sets(tmp_path)
    Ingest(settings=CONFIG, manifest=manifest, out=tmp_path / "one", only="det").run()
    Ingest(settings=CONFIG, manifest=manifest, out=tmp_path / "two", only="det", workers=2).run()
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


def test_ingest_stops_at_too_many_losses(tmp_path):
    with pytest.raises(RunError, match=r"set det: 3 of 5 images lost.*max_failed_share"):
        Ingest(
            settings=IngestConfig(max_failed_share=0.1), manifest=write_sets(tmp_path), out=tmp_path / "out", only="det"
        ).run()


def test_ingest_stops_where_the_labels_are_not_as_expected(tmp_path):
    """Images would be kept, one label each; every other label names a class that is not in the file."""
    path = write_sets(tmp_path)
    rows = json.loads((tmp_path / "det.json").read_text())
    rows["images"] = rows["images"][:1]
    rows["annotations"] = [{"image_id": 1, "category_id": c, "bbox": [1, 1, 9, 9]} for c in (7, 7, 0, 0)]
    (tmp_path / "det.json").write_text(json.dumps(rows))
    wanted = r"set det: 2 of 4 regions lost \({'unknown_category': 2}\).*max_failed_share"
    with pytest.raises(RunError, match=wanted):
        Ingest(settings=IngestConfig(), manifest=path, out=tmp_path / "out", only="det").run()


def test_shards_of_an_earlier_ingest_into_more_of_them_are_removed(tmp_path):
    manifest, out = write_sets(tmp_path), tmp_path / "out"
    Ingest(settings=CONFIG, manifest=manifest, out=out).run()
    write_tar(out / "det-000007.tar", iter([("mine", {"txt": b"not of ingest"})]))
    assert {p.name for p in out.glob("det-*.tar")} == {f"det-00000{n}.tar" for n in (0, 1, 2, 7)}
    Ingest(settings=CONFIG.model_copy(update={"samples_per_shard": 4}), manifest=manifest, out=out, only="det").run()
    assert {p.name for p in out.glob("det-*")} == {
        "det-000000.tar", "det-000000.report.json", "det-000001.tar", "det-000001.report.json", "det-000007.tar",
    }  # fmt: skip
    assert (out / "gr-000000.tar").exists()


def test_a_corrected_label_file_of_the_same_size_is_noticed(tmp_path):
    """And so is one behind a URL: what is read is what is looked at."""
    import fsspec

    files = {"xml/2007_000027.xml": layouts.VOC.encode(), "images/2007_000027.jpg": jpeg(1)}
    store = fsspec.filesystem("memory")
    for name, data in files.items():
        store.pipe(f"/corrected/{name}", data)
    (tmp_path / "m.yaml").write_text(
        "sets: {s: {kind: detection, format: voc, annotations: xml, images_folder: [none, images]}}"
    )
    config = IngestConfig(max_failed_share=1)

    def phrases() -> set[str]:
        report = Ingest(
            settings=config, manifest=tmp_path / "m.yaml", out=tmp_path / "out", root="memory://corrected"
        ).run()
        assert report.tallies["samples"].kept == 1
        return {r.phrase for record in records(tmp_path / "out", "s-*.tar") for r in record.regions}

    before = phrases()
    assert "person" in before
    store.pipe("/corrected/xml/2007_000027.xml", files["xml/2007_000027.xml"].replace(b"person", b"parrot"))
    assert phrases() == {"parrot" if name == "person" else name for name in before}
    store.rm("/corrected", recursive=True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sets: {a: {kind: detection, format: coco, anotations: x}}", r"sets\.a\.anotations"),
        ("sets: {a: {kind: detection, format: coco}}", "annotations"),
        ("nothing: 1", "want a mapping `sets`"),
        ("sets: {a: {kind: crawl, format: img2dataset}}", "no labelled set"),
    ],
)
def test_wrong_manifests_are_named(tmp_path, text, message):
    (tmp_path / "m.yaml").write_text(text)
    with pytest.raises(InputError, match=message):
        Ingest(settings=CONFIG, manifest=tmp_path / "m.yaml", out=tmp_path / "out").run()


def test_wrong_label_files_are_named(tmp_path):
    path = tmp_path / "a.json"
    for data, message in [
        ("[", "want COCO's detection JSON.*found a JSON list"),
        ('{"images": [}', "want JSON; found none"),
        ('{"images": [{"id": 1, "file_na', "want JSON; found none .cut off"),
        ('{"images": []}', "`annotations`"),
        (
            '{"images": [{"id": 1, "file_name": "a"}, {"id": 1, "file_name": "b"}], '
            '"annotations": [], "categories": []}',
            "duplicate image id 1",
        ),
        ('{"images": [{"id": 1}], "annotations": [], "categories": []}', "want `file_name`; found `id`"),
    ]:
        path.write_text(data)
        with pytest.raises(InputError, match=message):
            read_coco(path)
    path.write_text('{"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": []}')
    with pytest.raises(InputError, match="image 1: want `caption`; found `id`, `file_name`"):
        read_mdetr(path)


@pytest.mark.parametrize("name", ["openimages", "grit", "glip_captions", "flickr30k", "voc", "odvg_grounding"])
def test_every_kind_of_place_and_box_comes_out_as_a_record(tmp_path, name):
    """Shares of the image, images inside of other files, folders of label files: through to the shards."""
    put, one = layouts.put, jpeg(1)
    images = tmp_path / "images"
    images.mkdir()
    extra = ""
    if name == "openimages":
        for key in ("000026e7ee790996", "0000c64e1253d68f"):
            (images / f"{key}.jpg").write_bytes(one)
        put(tmp_path / "a.csv", layouts.OI_BOXES)
        put(tmp_path / "c.csv", layouts.OI_CLASSES)
        annotations, extra = "a.csv", ", companions: {classes: c.csv}"
    elif name == "grit":
        sample = {"jpg": one, "json": json.dumps(layouts.GRIT).encode()}
        write_tar(tmp_path / "00000.tar", iter([("000000012", sample)]))
        annotations = "'{00000..00000}.tar'"
    elif name == "glip_captions":
        put(tmp_path / "l.tsv", layouts.tsv({"k.1": layouts.GLIP_V1, "k_1": layouts.GLIP_V2}))
        put(tmp_path / "i.tsv", layouts.image_tsv(["k_1", "k.1"]))
        annotations, extra = "l.tsv", ", companions: {images: i.tsv}"
    elif name == "flickr30k":
        put(tmp_path / "xml" / "1000092795.xml", layouts.FLICKR_XML)
        put(tmp_path / "sentences" / "1000092795.txt", layouts.FLICKR_SENTENCES)
        (images / "1000092795.jpg").write_bytes(one)
        annotations, extra = "xml", ", companions: {sentences: sentences}"
    elif name == "voc":
        put(tmp_path / "xml" / "2007_000027.xml", layouts.VOC)
        (images / "2007_000027.jpg").write_bytes(one)
        annotations = "xml"
    else:
        put(tmp_path / "g.jsonl", layouts.lines(layouts.ODVG_GROUNDING))
        (images / "a.jpg").write_bytes(one)
        annotations = "g.jsonl"
    kind = load_format(name).kind
    (tmp_path / "m.yaml").write_text(
        f"sets: {{s: {{kind: {kind}, format: {name}, annotations: {annotations}, images_folder: images{extra}}}}}"
    )
    report = Ingest(settings=CONFIG, manifest=tmp_path / "m.yaml", out=tmp_path / "out").run()
    found = records(tmp_path / "out", "s-*.tar")
    assert found and not report.tallies["samples"].dropped and report.tallies["samples"].kept == len(found)
    assert all(r.image_size == (64, 80) and r.kind == kind for r in found)
    assert all(
        0 <= x1 < x2 <= 80 and 0 <= y1 < y2 <= 64 for r in found for x1, y1, x2, y2 in (g.box for g in r.regions)
    )
    assert report.tallies["regions"].kept == sum(len(r.regions) for r in found) > 0
    if name == "openimages":
        assert found[0].regions[0].box == pytest.approx((80 * 0.071905, 64 * 0.206591, 80 * 0.145346, 64 * 0.391306))
    assert Ingest(settings=CONFIG, manifest=tmp_path / "m.yaml", out=tmp_path / "out").run().done == 0


@pytest.mark.parametrize("size", [(64, 80), None])  # cut by the reader, or when the image has been seen
def test_corners_in_place_of_x_y_width_height_are_told_of(tmp_path, caplog, size):
    """Every box of the file looks sound; on the images, all of these reach out at the right or below."""
    images = {f"{n}.jpg": jpeg(n) for n in range(3)}
    manifest = coco_of(tmp_path, images, size=size, box=(50, 30, 78, 60))
    report = Ingest(settings=CONFIG, manifest=manifest, out=tmp_path / "out").run()
    assert report.tallies["regions"].kept == 3 and report.numbers == {"regions_cut_at_edge": 3}
    assert "s: 3 of 3 boxes reached outside their image" in caplog.text and "corners" in caplog.text
    caplog.clear()
    shutil.rmtree(tmp_path / "images")
    assert (
        not Ingest(settings=CONFIG, manifest=coco_of(tmp_path, images, size=size), out=tmp_path / "out").run().numbers
        and not caplog.text
    )


def test_labels_and_images_behind_urls_give_the_same_shards(tmp_path):
    images = {f"{i}.jpg": jpeg(i) for i in range(40)} | {"x.jpg": b"no image"}
    manifest = coco_of(tmp_path, images)
    (tmp_path / "images" / "7.jpg").unlink()
    config = IngestConfig(samples_per_shard=30, max_failed_share=0.5)
    Ingest(settings=config, manifest=manifest, out=tmp_path / "one").run()
    store = fsspec.filesystem("memory")
    store.put(str(tmp_path / "a.json"), "/bucket/a.json")
    store.put(str(tmp_path / "images"), "/bucket/images", recursive=True)
    report = Ingest(settings=config, manifest=manifest, out=tmp_path / "two", root="memory://bucket").run()
    assert report.tallies["samples"].dropped == {"image_missing": 1, "broken_image": 1}
    tars = sorted(p.name for p in (tmp_path / "one").glob("*.tar"))
    assert len(tars) == 2
    assert all((tmp_path / "one" / n).read_bytes() == (tmp_path / "two" / n).read_bytes() for n in tars)
    assert Ingest(settings=config, manifest=manifest, out=tmp_path / "two", root="memory://bucket").run().done == 0


@pytest.mark.slow
def test_a_killed_run_goes_on_and_writes_what_a_quiet_one_does(tmp_path):
    manifest = coco_of(tmp_path, {f"{i}.jpg": jpeg(i) for i in range(60)})
    settings = ["--set", "samples_per_shard=2"]
    command = [sys.executable, "-m", "pipeline", "ingest", str(manifest), *settings, "--out"]
    for seen in (1, 9, 17):
        child = subprocess.Popen(
            [*command, str(tmp_path / "killed")], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        while len(list((tmp_path / "killed").glob("*.report.json"))) < seen and child.poll() is None:
            time.sleep(0.001)
        child.kill()
        child.wait()
    before = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "killed").glob("*.report.json")}
    subprocess.run([*command, str(tmp_path / "killed"), "--workers", "2"], check=True, capture_output=True)
    subprocess.run([*command, str(tmp_path / "quiet")], check=True, capture_output=True)
    files = {p.name for p in (tmp_path / "quiet").iterdir()}
    assert {p.name for p in (tmp_path / "killed").iterdir()} == files and len(files) == 61
    assert all((tmp_path / "killed" / n).read_bytes() == (tmp_path / "quiet" / n).read_bytes() for n in files)
    assert before and all((tmp_path / "killed" / n).stat().st_mtime_ns == t for n, t in before.items())


def test_text_that_is_no_unicode_costs_its_image_only(tmp_path):
    mixed = {**layouts.MIXED, "images": [{**i, "caption": "a dog"} for i in layouts.MIXED["images"]]}
    mixed["annotations"] = [{"image_id": i, "bbox": [1, 1, 9, 9], "tokens_positive": [[0, 4]]} for i in (0, 1)]
    mixed["images"][0]["caption"] = "half \ud800"
    (tmp_path / "images").mkdir()
    for image in mixed["images"]:
        (tmp_path / "images" / image["file_name"]).write_bytes(jpeg(1))
    (tmp_path / "a.json").write_text(json.dumps(mixed))
    entry = {"kind": "grounding", "format": "mdetr", "annotations": "a.json", "images_folder": "images"}
    manifest = layouts.put(tmp_path / "m.yaml", {"sets": {"s": entry}})
    assert Ingest(settings=CONFIG, manifest=manifest, out=tmp_path / "out").run().tallies["samples"].dropped == {
        "bad_record": 1
    }


@settings(max_examples=60, deadline=None)
@given(
    words=st.lists(st.text("abcé字 ", min_size=1, max_size=6), min_size=1, max_size=6),
    data=st.data(),
)
def test_spans_never_shift(tmp_path_factory, words, data):
    caption = " ".join(words) + "."
    start = data.draw(st.integers(0, len(caption) - 1))
    end = data.draw(st.integers(start + 1, len(caption)))
    path = tmp_path_factory.mktemp("m") / "a.json"
    image = {"id": 1, "file_name": "a.jpg", "caption": caption, "height": 10, "width": 10}
    row = {"image_id": 1, "bbox": [1, 1, 5, 5], "tokens_positive": [[start, end]]}
    path.write_text(json.dumps({"images": [image], "annotations": [row]}))
    (region,) = read_mdetr(path).images[0].regions
    assert region.tokens_positive == ((start, end),) and region.phrase == caption[start:end]


def test_a_cards_prompts_are_the_manifests_and_unknown_classes_are_told(tmp_path, caplog):
    manifest = coco_of(tmp_path, {"0.jpg": jpeg(0)})
    prompts = {"x": {"prefix": "a ", "prompt_name": "car"}, "cars": {"suffix": " there"}}
    data = yaml.safe_load(manifest.read_text())
    (data["sets"]["s"])["class_prompts"] = prompts
    manifest.write_text(yaml.safe_dump(data))
    run = Ingest(settings=CONFIG, manifest=manifest, out=tmp_path / "out").run
    run()
    card = json.loads((tmp_path / "out" / "s.dataset.json").read_text())
    assert card["class_prompts"] == {"x": {"prefix": "a ", "prompt_name": "car", "suffix": ""}}
    assert "s: class_prompts: found 'cars'; want one of x" in caplog.text
    del data["sets"]["s"]["class_prompts"]
    manifest.write_text(yaml.safe_dump(data))
    assert run().done == 0  # the card alone changes
    assert "class_prompts" not in json.loads((tmp_path / "out" / "s.dataset.json").read_text())
    data["sets"]["s"]["class_prompts"] = {"x": {"name": "car"}}
    manifest.write_text(yaml.safe_dump(data))
    with pytest.raises(InputError, match=r"class_prompts\.x\.name"):
        run()
