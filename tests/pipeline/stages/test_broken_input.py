"""A corpus of everything that can be wrong with a crawl: all counted under a reason, nothing fatal
to its neighbours."""

from __future__ import annotations

import io
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.config import BuildShardsConfig, FilterConfig, ParsePhrasesConfig, PseudoLabelConfig
from pipeline.data.keys import shard_key
from pipeline.data.training_shards import ShardSet
from pipeline.stages.jobs import BuildShards, FilterBoxes, ParsePhrases, PseudoLabel
from tests.fixtures.crawl import jpeg

CAPTION = b"a red car next to a small green tree"
SIZE = (40, 30)


def encoded(mode: str, form: str, **options: object) -> bytes:
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 255, (SIZE[1], SIZE[0], 3), dtype=np.uint8))
    image = image.convert("RGB").quantize() if mode == "P" else image.convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def deep_grey() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.arange(SIZE[0] * SIZE[1], dtype=np.uint16).reshape(SIZE[1], SIZE[0]) * 50).save(buffer, "PNG")
    return buffer.getvalue()


def animated(form: str) -> bytes:
    frames = [Image.new("RGB", SIZE, colour) for colour in ("red", "blue", "green")]
    buffer = io.BytesIO()
    frames[0].save(buffer, form, save_all=True, append_images=frames[1:], duration=50)
    return buffer.getvalue()


def huge_png() -> bytes:
    """A header that promises 60,000 x 60,000 pixels."""
    data = bytearray(encoded("RGB", "PNG"))
    data[16:24] = (60_000).to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    return bytes(data)


GOOD = {
    "plain": ("jpg", jpeg(1, SIZE)),
    "cmyk": ("jpg", encoded("CMYK", "JPEG")),
    "grey": ("jpg", encoded("L", "JPEG")),
    "progressive": ("jpg", encoded("RGB", "JPEG", progressive=True)),
    "palette": ("png", encoded("P", "PNG")),
    "transparent": ("png", encoded("RGBA", "PNG")),
    "deep_grey": ("png", deep_grey()),
    "webp": ("webp", encoded("RGB", "WEBP")),
    "animated_gif": ("gif", animated("GIF")),
    "animated_webp": ("webp", animated("WEBP")),
    "png_named_jpg": ("jpg", encoded("RGB", "PNG")),
    "upper/case": ("JPG", jpeg(2, SIZE)),
}
BAD = {  # reason -> images
    "broken_image": {
        "truncated": ("jpg", jpeg(3, SIZE)[:400]),
        "html": ("jpg", b"<html><body>404 Not Found</body></html>"),
        "noise": ("png", bytes(range(256)) * 4),
        "svg": ("jpg", b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>'),
        "bad_crc": ("png", encoded("RGB", "PNG")[:60] + b"\0\0\0\0" + encoded("RGB", "PNG")[64:]),
    },
    "empty_image": {"zero_bytes": ("jpg", b"")},
    "image_too_large": {"huge": ("png", huge_png())},
}


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def write_corpus(folder: Path) -> list[str]:
    """00000: images of all kinds; 00001: names and captions; 00002: a bad header in the middle; 00003: no tar at all;
    00004: zero bytes; 00005: as it should be."""
    folder.mkdir()
    with tarfile.open(folder / "00000.tar", "w") as tar:
        for key, (extension, data) in {**GOOD, **{k: v for bad in BAD.values() for k, v in bad.items()}}.items():
            add(tar, f"{key}.{extension}", data)
            add(tar, f"{key}.txt", CAPTION)
    with tarfile.open(folder / "00001.tar", "w", format=tarfile.PAX_FORMAT, encoding="utf-8") as tar:
        for key, caption in {
            "latin1": "a café table".encode("latin-1"), "first": CAPTION,
            "emoji": "a 🐈‍⬛ cat and a naïve dog".encode(), "nul": b"a red car\0with a nul",
            "bom": b"\xef\xbb\xbfa red car",
        }.items():  # fmt: skip
            add(tar, f"{key}.jpg", jpeg(4, SIZE))
            add(tar, f"{key}.txt", caption)
        for name in ("../../outside", "/etc/absolute", "a/../../b"):
            add(tar, f"{name}.jpg", jpeg(5, SIZE))
            add(tar, f"{name}.txt", CAPTION)
        for _ in range(2):  # a key that comes back
            add(tar, "twice.jpg", jpeg(6, SIZE))
            add(tar, "twice.txt", CAPTION)
            add(tar, "between.txt", CAPTION)
        add(tar, "json.jpg", jpeg(7, SIZE))
        add(tar, "json.json", b'{"caption": "half a pair \\ud83d of a cat"}')
        add(tar, "listed.jpg", jpeg(7, SIZE))
        add(tar, "listed.json", b"[1, 2]")
        add(tar, "no_extension", b"x")
        link = tarfile.TarInfo("link.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    with tarfile.open(folder / "00002.tar", "w") as tar:
        for i in range(4):
            add(tar, f"s{i}.jpg", jpeg(i, SIZE))
            add(tar, f"s{i}.txt", CAPTION)
    data = bytearray((folder / "00002.tar").read_bytes())
    third = data.index(b"s2.jpg")
    data[third : third + 512] = b"\xff" * 512
    (folder / "00002.tar").write_bytes(bytes(data))
    (folder / "00003.tar").write_bytes(b"this is no archive" * 100)
    (folder / "00004.tar").write_bytes(b"")
    with tarfile.open(folder / "00005.tar", "w") as tar:
        add(tar, "good.jpg", jpeg(8, SIZE))
        add(tar, "good.txt", CAPTION)
    return [str(p) for p in sorted(folder.glob("*.tar"))]


@pytest.fixture(scope="module")
def run(tmp_path_factory, teacher):
    root = tmp_path_factory.mktemp("corpus")
    crawl = write_corpus(root / "crawl")
    parsed = ParsePhrases(settings=ParsePhrasesConfig(), shards=crawl, out=root / "phrases", max_failed=2).run()
    usable = [p for p in crawl if (root / "phrases" / f"{Path(p).stem}.parquet").exists()]
    config = PseudoLabelConfig(floor=0.01, batch_size=4, score_agg="max")
    labelled = PseudoLabel(
        settings=config, shards=usable, out=root / "regions", phrases=root / "phrases", teacher=teacher
    ).run()
    regions = [str(p) for p in sorted((root / "regions").glob("*.parquet"))]
    FilterBoxes(settings=FilterConfig(threshold=0.01), regions=regions, out=root / "labels").run()
    built = BuildShards(
        settings=BuildShardsConfig(),
        shards=usable,
        out=root / "train",
        phrases=root / "phrases",
        labels=root / "labels",
    ).run()
    return root, parsed, labelled, built


def test_files_that_are_no_archive_are_failures_with_a_reason(run):
    _, parsed, *_ = run
    assert {f.shard: "not a tar archive" in f.error for f in parsed.failed} == {"00003": True, "00004": True}


def test_every_image_is_labelled_or_counted_under_its_reason(run):
    _, parsed, labelled, _ = run
    samples = labelled.tallies["samples"]
    assert samples.dropped == {reason: len(images) for reason, images in BAD.items()}
    assert samples.seen == parsed.tallies["samples"].kept
    assert labelled.tallies["phrases"].dropped["image_lost"] == 2 * sum(map(len, BAD.values()))


def test_captions_and_names_are_counted_under_their_reasons(run):
    root, parsed, *_ = run
    samples, numbers = parsed.tallies["samples"], parsed.numbers
    assert samples.dropped["caption_not_utf8"] == 2  # Latin-1, and half a surrogate pair
    assert samples.dropped["bad_json"] == 1
    assert numbers["shard_unsafe_name"] == 6 and numbers["shard_duplicate_key"] == 2
    assert numbers["shard_member_without_extension"] == 1 and numbers["shard_bad_tar_header"] == 1
    assert not list(root.parent.glob("outside*")) and not Path("/etc/absolute.jpg").exists()


def test_what_stood_before_the_damage_is_labelled(run):
    root, *_ = run
    keys = {r.key for r in every_record(root, "pseudo-00002.tar")}
    assert keys == {"s0", "s1"}
    assert {r.key for r in every_record(root, "pseudo-00005.tar")} == {"good"}


def test_every_good_image_became_a_record_of_its_own_size(run):
    root, _, _, built = run
    records = every_record(root, "pseudo-00000.tar")
    assert {r.key for r in records} == {shard_key(key) for key in GOOD}
    assert all(r.image_size == (SIZE[1], SIZE[0]) for r in records)
    assert built.tallies["samples"].dropped.get("image_changed", 0) == 0


def every_record(root: Path, name: str):
    shards = ShardSet([str(root / "train" / name)])
    return [shards.record(0, row) for row in range(shards.counts[0])]
