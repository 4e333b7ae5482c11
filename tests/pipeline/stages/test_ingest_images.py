"""Images on their way into shards: of every kind, turned by EXIF, broken, in several folders."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import ExifTags, Image

from pipeline.config import IngestConfig
from pipeline.data.images import open_image
from pipeline.data.training_shards import ShardSet
from pipeline.io.tars import read_tar
from pipeline.stages.jobs import Ingest
from tests.fixtures.crawl import jpeg
from tests.pipeline.readers import layouts
from tests.pipeline.readers.layouts import coco_of
from tests.pipeline.stages.test_ingest import CONFIG, records


def picture(mode: str, form: str, **options) -> bytes:
    """An image of 80 x 64 in a mode and a file format."""
    buffer = io.BytesIO()
    values = np.random.default_rng(3).integers(0, 255, (64, 80, 3), dtype=np.uint8)
    image = Image.fromarray(values)
    image = Image.fromarray(values[..., 0].astype(np.uint16) * 257) if mode == "I;16" else image.convert(mode)
    image.save(buffer, form, **options)
    return buffer.getvalue()


def exif(orientation: int) -> bytes:
    tags = Image.Exif()
    tags[ExifTags.Base.Orientation] = orientation
    return tags.tobytes()


def test_images_of_every_kind_are_copied_as_they_are(tmp_path):
    images = {
        "grey.jpg": picture("L", "JPEG"), "cmyk.jpg": picture("CMYK", "JPEG"), "deep.png": picture("I;16", "PNG"),
        "palette.png": picture("P", "PNG"), "alpha.webp": picture("RGBA", "WEBP"), "moving.gif": picture("P", "GIF"),
        "progressive.JPEG": picture("RGB", "JPEG", progressive=True), "called.jpg": picture("RGB", "PNG"),
        "flat.bmp": picture("RGB", "BMP"), "noname": picture("RGB", "JPEG"),
    }  # fmt: skip
    report = Ingest(settings=CONFIG, manifest=coco_of(tmp_path, images), out=tmp_path / "out").run()
    assert report.tallies["samples"].dropped == {} and report.tallies["samples"].kept == len(images)
    found = [s for p in sorted((tmp_path / "out").glob("*.tar")) for s in read_tar(p)]
    kept = [next(e for e in s.files if e != "json") for s in found]
    assert kept == ["jpg", "jpg", "png", "png", "webp", "gif", "jpeg", "png", "bmp", "jpg"]
    for sample, extension, data in zip(found, kept, images.values(), strict=True):
        assert sample.files[extension] == data
        assert open_image(data).size == (80, 64)  # and training reads it
    assert ShardSet([str(p) for p in sorted((tmp_path / "out").glob("*.tar"))]).counts == [2] * 5


def test_images_that_are_none_are_counted_and_named(tmp_path):
    tiff = picture("RGB", "TIFF")
    images = {
        "a.jpg": b"",
        "b.jpg": b"no",
        "c.tif": tiff,
        "d.jpg": jpeg(1)[:60],
        "e.jpg": jpeg(2)[:-300],
        "f.jpg": jpeg(3),
    }
    manifest = coco_of(tmp_path, images)
    config = IngestConfig(max_failed_share=1.0)
    report = Ingest(settings=config, manifest=manifest, out=tmp_path / "out").run()
    assert report.tallies["samples"].dropped == {"broken_image": 2, "empty_image": 1, "other_format": 1}
    config = IngestConfig(max_failed_share=1.0, check_images="decode")
    assert (
        Ingest(settings=config, manifest=manifest, out=tmp_path / "out")
        .run()
        .tallies["samples"]
        .dropped["broken_image"]
        == 3
    )
    (tmp_path / "images" / "f.jpg").unlink()
    assert (
        Ingest(settings=config, manifest=manifest, out=tmp_path / "out")
        .run()
        .tallies["samples"]
        .dropped["image_missing"]
        == 1
    )


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    ("stated", "setting"), [("stored", "upright"), (None, "stored"), (None, "upright"), ("upright", "upright")]
)
def test_boxes_stay_on_their_pixels_whatever_the_exif_orientation(tmp_path, orientation, stated, setting):
    """A white rectangle on black is where its box says, once the image is upright."""
    canvas = Image.new("RGB", (80, 64))
    upright_box = stated == "upright" or (stated is None and setting == "upright")
    lying = orientation >= 5
    canvas.paste((255, 255, 255), (10, 4, 30, 12))
    buffer = io.BytesIO()
    canvas.save(buffer, "PNG", exif=exif(orientation))
    shown = open_image(buffer.getvalue())
    x1, y1, x2, y2 = shown.getbbox()
    box = (x1, y1, x2 - x1, y2 - y1) if upright_box else (10, 4, 20, 8)
    size = {None: None, "stored": (64, 80), "upright": (80, 64) if lying else (64, 80)}[stated]
    if stated == "stored" and not lying:
        setting = "stored"  # the size does not tell
    manifest = coco_of(tmp_path, {"a.png": buffer.getvalue()}, size=size, box=box, orientation=setting)
    Ingest(settings=CONFIG, manifest=manifest, out=tmp_path / "out").run()
    (record,) = records(tmp_path / "out", "*.tar")
    assert record.image_size == (shown.height, shown.width)
    assert record.regions[0].box == (x1, y1, x2, y2)


def test_labels_of_another_image_are_refused(tmp_path):
    manifest = coco_of(tmp_path, {"a.jpg": jpeg(1)}, size=(50, 50))
    report = Ingest(settings=IngestConfig(max_failed_share=1), manifest=manifest, out=tmp_path / "out").run()
    assert report.tallies["samples"].dropped == {"size_differs": 1}


def test_images_in_several_folders(tmp_path):
    more = {"image_id": 1, "bbox": [1, 1, 9, 9], "tokens_positive": [[0, 5]]}  # an image without any would be left out
    mixed = {**layouts.MIXED, "annotations": [*layouts.MIXED["annotations"], more]}
    for name, folder in (("2377985.jpg", "vg"), ("COCO_train2014_000000581857.jpg", "coco")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / name).write_bytes(jpeg(1))
    layouts.put(tmp_path / "a.json", mixed)
    entry = {"kind": "grounding", "format": "mdetr", "annotations": "a.json"}
    for folders in ({"vg": "vg", "coco": "coco"}, ["vg", "coco"]):
        manifest = layouts.put(tmp_path / "m.yaml", {"sets": {"s": {**entry, "images_folder": folders}}})
        report = Ingest(settings=CONFIG, manifest=manifest, out=tmp_path / f"out-{len(str(folders))}").run()
        assert report.tallies["samples"].kept == 2
    manifest = layouts.put(tmp_path / "m.yaml", {"sets": {"s": {**entry, "images_folder": {"vg": "vg"}}}})
    assert Ingest(settings=CONFIG, manifest=manifest, out=tmp_path / "o").run().tallies["samples"].dropped == {
        "unknown_folder": 1
    }
