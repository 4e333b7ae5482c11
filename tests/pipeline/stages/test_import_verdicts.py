"""Out to a labelling tool and back: verdicts of what people left, moved, deleted and added, and of nothing else."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.cli import app as cli
from pipeline.data.name_list import NameList
from pipeline.data.records import LABELS, NAMED_LABELS, NAMED_REGIONS, PHRASES
from pipeline.data.verdicts import Verdict, Verdicts, rows
from pipeline.errors import InputError
from pipeline.io.tables import write_table
from pipeline.io.tars import write_tar
from pipeline.stages.jobs import BuildShards, ExportLabels, ImportVerdicts
from tests.fixtures.crawl import jpeg
from tests.fixtures.label_studio import LabelStudioServer
from tests.fixtures.regions import region, table_of, write

CAPTION = "a dog & a <red> car near a dog 👩‍🚀, no boat"
SPANS = {"dog": (2, 5), "<red> car": (10, 19), "dog again": (27, 30), "boat": (39, 43)}
TIME = "2026-01-02T03:04:05.678900Z"
FIXTURE = Path(__file__).parents[2] / "fixtures" / "label_studio_export.json"


def row(key: str, phrase: str, box: tuple[float, ...], score: float = 0.9, **more: Any) -> dict[str, Any]:
    start, end = SPANS[phrase]
    place = {"phrase_row": list(SPANS).index(phrase), "phrase": CAPTION[start:end], "start": start, "end": end}
    return region(key=key, box=box, score=score, **place, **more) | {"height": 64, "width": 80}


def write_store(root: Path, kept: list[dict], dropped: list[dict] = (), ignored: list[dict] = ()) -> None:
    """``regions``, ``labels`` and ``phrases`` of the shard 00000."""
    every = [*kept, *ignored, *dropped]
    keys = list(dict.fromkeys(r["key"] for r in every))
    captions = [
        {"key": key, "caption": CAPTION, "phrase": CAPTION[a:b], "root": CAPTION[a:b].split()[-1], "start": a, "end": b}
        for key in keys
        for a, b in SPANS.values()
    ]
    for r in every:
        r["phrase_row"] = keys.index(r["key"]) * len(SPANS) + r["phrase_row"] % len(SPANS)
    write_table(root / "phrases" / "00000.parquet", pa.Table.from_pylist(captions, schema=PHRASES), PHRASES, {})
    write(root / "regions" / "00000.parquet", table_of(every), {"teacher": "glip@0", "fingerprint": "f" * 64})
    field = LABELS.field("status")
    status = pa.array(["keep"] * len(kept) + ["ignore"] * len(ignored)).dictionary_encode().cast(field.type)
    labels = table_of([*kept, *ignored]).append_column(field, status)
    write_table(root / "labels" / "00000.parquet", labels, LABELS, {"teacher": "glip@0"})


def export(root: Path, to: str) -> Path:
    """The exported file."""
    ExportLabels(dirs=root / "labels", out=root / to, to=to).run()
    return root / to / ("pseudo.xml" if to == "cvat" else "pseudo.json")


def submitted(file: Path, change=lambda results, task: results) -> Path:
    """Label Studio's export of tasks whose predictions were submitted, after ``change``."""
    tasks = json.loads(file.read_text())
    for task in tasks:
        results = json.loads(json.dumps(task["predictions"][0]["result"]))
        task["annotations"] = [
            {"result": change(results, task), "was_cancelled": False, "updated_at": TIME, "completed_by": 7}
        ]
    out = file.with_name("annotated.json")
    out.write_text(json.dumps(tasks))
    return out


def ticked(file: Path, change=lambda image: None) -> Path:
    """CVAT's export of images that are marked as reviewed, after ``change``."""
    tree = ET.parse(file)
    task = tree.getroot().find("meta/task")
    ET.SubElement(task, "updated").text = TIME
    for image in tree.getroot().iterfind("image"):
        image.find("tag/attribute[@name='reviewed']").text = "true"
        change(image)
    out = file.with_name("annotated.xml")
    tree.write(out, encoding="utf-8")
    return out


def bring(root: Path, file: Path, source: str, **more: Any) -> tuple[list[Verdict], dict[str, float]]:
    job = ImportVerdicts(file=file, source=source, regions=root / "regions", out=root / "verdicts", **more)
    report = job.run()
    return list(rows(Verdicts.read(root / "verdicts").table)), report.numbers


def said(verdicts: list[Verdict]) -> list[tuple]:
    return sorted((v.key, v.verdict, v.start, v.box or (), v.boxes) for v in verdicts)


COORDINATE = st.floats(-20, 120, width=32)


@st.composite
def region_rows(draw):
    key, phrase = draw(st.sampled_from(["a", "b.c", "d/e"])), draw(st.sampled_from(list(SPANS)))
    (x1, x2), (y1, y2) = (sorted(draw(st.tuples(COORDINATE, COORDINATE))) for _ in range(2))
    return row(key, phrase, (x1, y1, x2, y2), score=draw(st.floats(0.125, 1, width=16)))


def shown(r: dict[str, Any]) -> tuple[float, ...]:
    return (max(r["x1"], 0), max(r["y1"], 0), min(r["x2"], 80), min(r["y2"], 64))


@pytest.mark.parametrize("to", ["label-studio", "cvat"])
@settings(max_examples=12, deadline=None)
@given(st.lists(region_rows(), min_size=1, max_size=8), st.integers(1, 8), st.integers(0, 8))
def test_what_nobody_changed_is_accepted_and_nothing_else_is_said(to, every, kept, ignored):
    every = [r for r in every if min(shown(r)[2] - shown(r)[0], shown(r)[3] - shown(r)[1]) > 0.02]
    exported = every[: kept + ignored]
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        write_store(root, every[:kept], every[kept + ignored :], every[kept : kept + ignored])
        if not exported:
            return
        file = export(root, to)
        in_order = sorted(exported, key=lambda r: [e["key"] for e in exported].index(r["key"]))
        assert np.allclose(boxes_in(file, to), [shown(r) for r in in_order], atol=0.01, rtol=0)
        verdicts, _ = bring(root, (submitted if to == "label-studio" else ticked)(file), to)
    stored = {(r["key"], r["start"], *(r[c] for c in ("x1", "y1", "x2", "y2"))) for r in exported}
    assert {v.verdict for v in verdicts} == {"accept"} and not any(v.boxes for v in verdicts)
    assert {(v.key, v.start, *v.box) for v in verdicts} <= stored
    assert len(verdicts) == len({(r["key"], r["start"], *(round(x, 2) for x in shown(r))) for r in exported})


def boxes_in(file: Path, to: str) -> list[tuple[float, ...]]:
    """Boxes in pixels, as the tool reads them."""
    found = []
    if to == "cvat":
        for box in ET.parse(file).getroot().iter("box"):
            found.append(tuple(float(box.get(name)) for name in ("xtl", "ytl", "xbr", "ybr")))
    else:
        for task in json.loads(file.read_text()):
            for result in task["predictions"][0]["result"]:
                v = result["value"]
                x, y, w, h = v["x"] * 0.8, v["y"] * 0.64, v["width"] * 0.8, v["height"] * 0.64
                found.append((x, y, x + w, y + h))
    return found


# --- what people change


def example(root: Path) -> None:
    """Images a to d, three regions of a exported and one not; b has one phrase at two places of the caption."""
    kept = [
        row("a", "dog", (1.25, 2, 30, 40)), row("a", "<red> car", (35, 5, 70, 50)),
        row("a", "dog again", (40, 30, 78, 60)), row("b", "dog", (0, 0, 20, 20)), row("c", "dog", (5, 5, 25, 25)),
        row("d", "dog", (6, 6, 26, 26)),
    ]  # fmt: skip
    write_store(root, kept, [row("a", "dog", (50, 2, 79, 30), 0.2), row("b", "boat", (30, 30, 60, 60), 0.1)])


EXPECTED = sorted(
    [
        ("a", "accept", 2, (1.25, 2, 30, 40), ()),
        ("a", "fixed", 10, (35, 5, 70, 50), ((38.0, 5.0, 73.0, 50.0),)),
        ("a", "reject", 27, (40, 30, 78, 60), ()),
        ("a", "missing", 39, (), ((8.0, 44.8, 16.0, 57.6),)),
        ("b", "accept", 2, (0, 0, 20, 20), ()),
    ]
)
"""Verdicts that :func:`edit` stands for: no word of c and d, nor of what was not exported."""


def edit(results: list[dict], key: str) -> list[dict]:
    """The results of image a with one left, one moved by 3 pixels, one deleted and one added."""
    if key != "a":
        return results
    dog, car, _ = results
    moved = car | {"value": car["value"] | {"x": car["value"]["x"] + 3 / 0.8}, "origin": "prediction-changed"}
    value = {"x": 10, "y": 70, "width": 10, "height": 20, "rotation": 0, "rectanglelabels": ["boat"]}
    return [dog, moved, dog | {"id": "Xy12_abcde", "value": value, "origin": "manual"}]


@pytest.mark.slow
@pytest.mark.timeout(1800)  # its database is made in two minutes on two idle cores
def test_a_real_label_studio_takes_the_tasks_and_its_export_becomes_verdicts(tmp_path):
    program = os.environ.get("LABEL_STUDIO") or shutil.which("label-studio")
    if program is None:
        pytest.skip(
            "needs Label Studio, 1 GB: LABEL_STUDIO=ENVIRONMENT/bin/label-studio, of `pip install label-studio`"
        )
    example(tmp_path)
    images = [(key, {"jpg": jpeg(i)}) for i, key in enumerate("abcd")]
    write_tar(tmp_path / "crawl" / "00000.tar", images)
    ExportLabels(dirs=tmp_path / "labels", crawl=tmp_path / "crawl", out=tmp_path / "out", to="label-studio").run()
    server = LabelStudioServer(program, tmp_path / "server", tmp_path)
    try:
        server.wait()
        config = (tmp_path / "out" / "pseudo.xml").read_text()
        project = server.call("POST", "/api/projects", json={"title": "labels", "label_config": config})["id"]
        storage = {"project": project, "path": str(tmp_path / "out"), "use_blob_urls": True}
        server.call("POST", "/api/storages/localfiles", json=storage)
        tasks = json.loads((tmp_path / "out" / "pseudo.json").read_text())
        server.call("POST", f"/api/projects/{project}/import", json=tasks)
        listed = server.call("GET", "/api/tasks", params={"project": project, "fields": "all"})["tasks"]
        assert [task["data"]["key"] for task in listed] == ["a", "b", "c", "d"]
        served = server.call("GET", listed[0]["data"]["image"])
        assert served == images[0][1]["jpg"]
        for task in listed:
            results, key = task["predictions"][0]["result"], task["data"]["key"]
            if key != "c":
                answer = {"result": edit(results, key), "was_cancelled": key == "d", "lead_time": 1}
                server.call("POST", f"/api/tasks/{task['id']}/annotations/", json=answer)
        options = {"exportType": "JSON", "download_all_tasks": "true"}
        exported = server.call("GET", f"/api/projects/{project}/export", params=options)
    finally:
        server.stop()
    file = tmp_path / "exported.json"
    file.write_text(json.dumps(exported) if isinstance(exported, list) else exported.decode())
    verdicts, numbers = bring(tmp_path, file, "label-studio")
    assert said(verdicts) == EXPECTED
    assert numbers == {"accept": 2, "fixed": 1, "missing": 1, "missing_boxes": 1, "reject": 1}


def test_an_export_of_a_real_label_studio_becomes_verdicts(tmp_path):
    """The file that the test above exported from Label Studio 1.23.2."""
    example(tmp_path)
    verdicts, numbers = bring(tmp_path, FIXTURE, "label-studio")
    assert said(verdicts) == EXPECTED
    assert numbers == {"accept": 2, "fixed": 1, "missing": 1, "missing_boxes": 1, "reject": 1}
    (fixed,) = (v for v in verdicts if v.verdict == "fixed")
    assert (fixed.phrase, fixed.kind, fixed.revision) == (CAPTION[10:19], "person", "f" * 64)
    assert fixed.by.startswith("label-studio:") and fixed.at.year >= 2025
    before = {path.name: path.read_bytes() for path in (tmp_path / "verdicts").iterdir()}
    again, numbers = bring(tmp_path, FIXTURE, "label-studio")
    assert {path.name: path.read_bytes() for path in (tmp_path / "verdicts").iterdir()} == before
    assert again == verdicts and numbers["already_there"] == 5


def cvat_edit(image: ET.Element) -> None:
    key = image.find("tag/attribute[@name='key']").text
    boxes = image.findall("box")
    if key == "a":
        for side in ("xtl", "xbr"):
            boxes[1].set(side, f"{float(boxes[1].get(side)) + 3:.2f}")
        image.remove(boxes[2])
        place = {"xtl": "8.00", "ytl": "44.80", "xbr": "16.00", "ybr": "57.60"}
        new = ET.SubElement(image, "box", {"label": "object", "source": "manual", "occluded": "0", **place})
        ET.SubElement(new, "attribute", {"name": "phrase"}).text = "Boat"
        ET.SubElement(new, "attribute", {"name": "region"})
    if key in "cd":
        image.find("tag/attribute[@name='reviewed']").text = "false"
        for box in boxes:
            image.remove(box)


def test_cvat_images_that_are_ticked_give_verdicts_and_others_none(tmp_path):
    example(tmp_path)
    file = ticked(export(tmp_path, "cvat"), cvat_edit)
    verdicts, numbers = bring(tmp_path, file, "cvat", phrases=tmp_path / "phrases")
    assert said(verdicts) == EXPECTED and numbers["missing_boxes"] == 1
    assert {(v.by, v.at.isoformat()) for v in verdicts} == {("cvat", "2026-01-02T03:04:05.678900+00:00")}
    _, numbers = bring(tmp_path, file, "cvat", phrases=tmp_path / "phrases", all_images=True, by="ann")
    assert numbers["reject"] == 3


def test_a_cvat_that_cut_the_list_of_exported_regions_gives_no_verdict(tmp_path):
    example(tmp_path)

    def cut(image: ET.Element) -> None:
        text = image.find("tag/attribute[@name='regions']")
        text.text = text.text[:-3]

    report = ImportVerdicts(
        file=ticked(export(tmp_path, "cvat"), cut), source="cvat", regions=tmp_path / "regions", out=tmp_path / "v"
    ).run()
    assert report.tallies["images"].dropped == {"regions_cut": 4} and not report.numbers


def test_coco_needs_the_exported_labels_and_leaves_bare_images_alone(tmp_path):
    example(tmp_path)
    data = json.loads(export(tmp_path, "coco").read_text())
    ids = {image["key"]: image["id"] for image in data["images"]}
    _, car, again = (row for row in data["annotations"] if row["image_id"] == ids["a"])
    car["bbox"][0] += 3
    car.pop("xyxy", None)
    new = {"id": 99, "image_id": ids["a"], "category_id": 1, "bbox": [8, 44.8, 8, 12.8], "tokens_positive": [[39, 43]]}
    kept = [row for row in data["annotations"] if row["image_id"] not in (ids["c"], ids["d"]) and row is not again]
    file = tmp_path / "edited.json"
    file.write_text(json.dumps(data | {"annotations": [*kept, new]}))
    with pytest.raises(InputError, match=r"which regions were exported; want .*--labels"):
        bring(tmp_path, file, "coco")
    assert not (tmp_path / "verdicts").exists()
    more = {"labels": tmp_path / "labels", "phrases": tmp_path / "phrases"}
    verdicts, _ = bring(tmp_path, file, "coco", **more)
    assert said(verdicts) == EXPECTED
    _, numbers = bring(tmp_path, file, "coco", all_images=True, **more)
    assert numbers["reject"] == 3


def test_classes_of_coco_are_matched_by_name_in_folders_of_shards(tmp_path):
    """Phrases as categories, in a file whose tool has left nothing but names and boxes."""
    write_store(tmp_path, [row("a", "<red> car", (1, 1, 20, 20)), row("a", "boat", (30, 30, 60, 60))])
    images = [{"id": 5, "file_name": "some/where/00000/a.png", "height": 64, "width": 80}]
    boxes = [{"id": 1, "image_id": 5, "category_id": 3, "bbox": [1, 1, 19, 19]}]
    file = tmp_path / "c.json"
    categories = [{"id": 3, "name": "CAR"}, {"id": 4, "name": "boat"}]
    file.write_text(json.dumps({"images": images, "annotations": boxes, "categories": categories}))
    verdicts, _ = bring(tmp_path, file, "coco", labels=tmp_path / "labels")
    assert {(v.verdict, v.start) for v in verdicts} == {("accept", 10), ("reject", 39)}


# --- what must not be a reject


def test_regions_whose_box_has_another_name_or_shape_are_left_without_a_verdict(tmp_path, caplog):
    example(tmp_path)

    def change(results: list[dict], task: dict) -> list[dict]:
        if task["data"]["key"] != "a":
            return results
        dog, car, again = results
        renamed = dog | {"value": dog["value"] | {"rectanglelabels": ["hound"]}}
        outline = car | {"type": "polygonlabels", "value": {"points": [[1, 1], [5, 5], [1, 9]], "polygonlabels": ["x"]}}
        return [renamed, outline | {"id": car["id"]}, again]

    verdicts, _ = bring(tmp_path, submitted(export(tmp_path, "label-studio"), change), "label-studio")
    assert {v.verdict for v in verdicts} == {"accept"} and len(verdicts) == 4
    assert "'hound'" in caplog.text


def test_other_images_regions_and_phrases_are_refused_when_they_are_half(tmp_path):
    example(tmp_path)
    file = submitted(export(tmp_path, "label-studio"))
    tasks = json.loads(file.read_text())

    def refused(changed: list[dict], match: str) -> None:
        other = tmp_path / "other.json"
        other.write_text(json.dumps(changed))
        with pytest.raises(InputError, match=match):
            bring(tmp_path, other, "label-studio")
        assert not (tmp_path / "verdicts").exists()

    images, regions, phrases = (json.loads(json.dumps(tasks)) for _ in range(3))
    for task in images[:2]:
        task["data"]["key"] = "x" + task["data"]["key"]
    refused(images, "2 of 4 images that are not in .*first: .*a.jpg.*--regions")
    for task in regions:
        task["data"]["regions"] = ["0" * 10]
    refused(regions, "4 of 4 exported regions")
    for result in phrases[0]["annotations"][0]["result"]:
        result["value"]["rectanglelabels"] = ["house"]
    refused(phrases, "3 of 6 boxes .*first: .*'house'")
    images[1] = tasks[1]
    (tmp_path / "other.json").write_text(json.dumps(images))
    job = {"source": "label-studio", "regions": tmp_path / "regions", "out": tmp_path / "verdicts"}
    report = ImportVerdicts(file=tmp_path / "other.json", **job).run()
    assert report.tallies["images"].dropped == {"unknown_image": 1} and report.numbers == {"accept": 3}


def test_images_of_another_size_give_no_verdict(tmp_path):
    example(tmp_path)
    file = ticked(export(tmp_path, "cvat"), lambda image: image.set("width", str(80 + (image.get("id") == "0"))))
    verdicts, _ = bring(tmp_path, file, "cvat")
    assert {v.key for v in verdicts} == {"b", "c", "d"}


# --- again


def test_a_later_export_replaces_the_earlier_one_of_the_same_person(tmp_path):
    example(tmp_path)
    file = export(tmp_path, "label-studio")
    first, _ = bring(
        tmp_path, submitted(file, lambda results, task: edit(results, task["data"]["key"])), "label-studio"
    )
    assert {"missing", "reject", "fixed"} < {v.verdict for v in first}
    tasks = json.loads(submitted(file).read_text())
    for task in tasks:
        task["annotations"][0]["updated_at"] = TIME.replace("2026", "2027")
    (file.parent / "later.json").write_text(json.dumps(tasks))
    verdicts, numbers = bring(tmp_path, file.parent / "later.json", "label-studio")
    assert {v.verdict for v in verdicts} == {"accept"} and numbers == {"accept": 6, "withdrawn": 1}
    other = ImportVerdicts(
        file=submitted(file, lambda results, task: []), source="label-studio", regions=tmp_path / "regions",
        out=tmp_path / "verdicts", by="somebody else",
    )  # fmt: skip
    other.run()  # submitted before the later one
    assert {v.verdict for v in rows(Verdicts.read(tmp_path / "verdicts").table)} == {"accept"}


def test_training_shards_of_build_shards_lead_back_to_the_store(tmp_path):
    keys = ("a", "d/e")
    write_store(tmp_path, [row(key, "dog", (1, 2, 30, 40)) for key in keys])
    write_tar(tmp_path / "crawl" / "00000.tar", [("a", {"jpg": jpeg(0)}), ("d/e", {"jpg": jpeg(1)})])
    inputs = {"shards": tmp_path / "crawl", "labels": tmp_path / "labels", "phrases": tmp_path / "phrases"}
    BuildShards(**inputs, out=tmp_path / "train").run()
    ExportLabels(dirs=tmp_path / "train", out=tmp_path / "out", to="label-studio", images="none").run()
    verdicts, _ = bring(tmp_path, submitted(tmp_path / "out" / "pseudo.json"), "label-studio")
    assert {(v.shard, v.key, v.verdict) for v in verdicts} <= {("00000", key, "accept") for key in keys} and verdicts


# --- the command


def test_the_command_says_what_it_did(tmp_path):
    example(tmp_path)
    file = submitted(export(tmp_path, "label-studio"))
    arguments = [file, "--from", "label-studio", "--regions", tmp_path / "regions", "--out", tmp_path / "verdicts"]
    done = CliRunner().invoke(cli.import_verdicts, [str(a) for a in arguments])
    assert done.exit_code == 0 and re.search(r"accept: 6\b", done.output), done.output
    wrong = CliRunner().invoke(cli.import_verdicts, [str(a) for a in [*arguments, "--all-images"]])
    assert wrong.exit_code == 2 and "--all-images is of cvat and coco" in wrong.output
    for source in ("cvat", "coco"):
        wrong = CliRunner().invoke(cli.import_verdicts, [str(file), "--from", source, *map(str, arguments[3:])])
        assert wrong.exit_code == 2 and "want" in wrong.output and "Traceback" not in wrong.output
    none = [{"data": {"image": "x"}, "annotations": []}]
    file.write_text(json.dumps(none))
    empty = CliRunner().invoke(cli.import_verdicts, [str(a) for a in arguments])
    assert empty.exit_code == 1 and "not_annotated 1" in empty.output


# --- class names, and turned boxes


@pytest.mark.parametrize("to", ["label-studio", "cvat"])
def test_labels_of_class_names_go_out_and_come_back_by_name(to, tmp_path):
    kept = [row("a", "dog", (1, 2, 30, 40)), row("a", "boat", (40, 5, 70, 30))]
    names = pa.array(["guide dog", "tug & boat"])
    notes = {"teacher": "glip@0", "names": NameList(names=("guide dog", "tug & boat", "buoy")).model_dump_json()}
    table = table_of(kept).append_column(NAMED_REGIONS.field("name"), names)
    write_table(tmp_path / "regions" / "00000.parquet", table, NAMED_REGIONS, notes)
    field = LABELS.field("status")
    status = pa.array(["keep", "keep"]).dictionary_encode().cast(field.type)
    labels = table_of(kept).append_column(field, status).append_column(NAMED_REGIONS.field("name"), names)
    write_table(tmp_path / "labels" / "00000.parquet", labels, NAMED_LABELS, notes)
    file = export(tmp_path, to)
    if to == "cvat":
        specification = json.loads((tmp_path / to / "pseudo.labels.json").read_text())
        assert [label["name"] for label in specification] == ["guide dog", "tug & boat", "buoy", "_image"]

        def change(image: ET.Element) -> None:
            first, second = image.findall("box")
            image.remove(second)
            first.set("label", "buoy")

        file = ticked(file, change)
    else:
        assert '<Label value="tug &amp; boat"/>' in (tmp_path / to / "pseudo.xml").read_text()

        def renamed(results: list[dict], task: dict) -> list[dict]:
            return [results[0] | {"value": results[0]["value"] | {"rectanglelabels": ["buoy"]}}]

        file = submitted(file, renamed)
    verdicts, _ = bring(tmp_path, file, to)
    assert {(v.verdict, v.phrase, v.start) for v in verdicts} == {
        ("missing", "buoy", None), ("reject", "guide dog", None), ("reject", "tug & boat", None),
    }  # fmt: skip


def test_turned_boxes_become_those_around_them(tmp_path):
    """Label Studio turns about the left upper corner, CVAT about the centre."""
    write_store(tmp_path, [row("a", "dog", (20, 10, 40, 20))])

    def turn(results: list[dict], task: dict) -> list[dict]:
        return [results[0] | {"value": results[0]["value"] | {"rotation": 90}}]

    (there,), _ = bring(tmp_path, submitted(export(tmp_path, "label-studio"), turn), "label-studio")
    assert there.boxes == ((10, 10, 20, 30),)
    file = ticked(export(tmp_path, "cvat"), lambda image: image.find("box").set("rotation", "90"))
    job = {"source": "cvat", "regions": tmp_path / "regions", "out": tmp_path / "other"}
    ImportVerdicts(file=file, **job).run()
    (there,) = rows(Verdicts.read(tmp_path / "other").table)
    assert there.boxes == ((25, 5, 35, 25),)


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("label-studio", '[{"data": {}, "annotations": [{"result": [{"value": {"x": "1"}, "id": 3}, 5]}]}]'),
        ("label-studio", '[{"data": {"spans": {"a": 3}, "labels": 1, "regions": 7}, "annotations": [{}]}]'),
        ("label-studio", '[{"image": "min.jpg", "label": []}]'),
        ("cvat", '<annotations><track id="0" label="x"/></annotations>'),
        ("cvat", '<annotations><image name="a"><box label="x" xtl="nan"/></image></annotations>'),
        ("coco", '{"images": [], "annotations": [{"image_id": 1}], "categories": []}'),
    ],
)
def test_malformed_files_are_one_line(source, text, tmp_path):
    write_store(tmp_path, [row("a", "dog", (20, 10, 40, 20))])
    (tmp_path / "file").write_text(text)
    with pytest.raises(InputError, match=r"file: .*(found|want)"):
        bring(tmp_path, tmp_path / "file", source, all_images=source == "cvat")
    assert not (tmp_path / "verdicts").exists()
