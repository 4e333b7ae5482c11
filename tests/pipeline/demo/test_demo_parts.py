"""Parts of the demo's generator: settings, manifest, glyphs, scenes, captions, the command."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import yaml
from click.testing import CliRunner
from pydantic import ValidationError

from pipeline.cli.data import make_demo_data as main
from pipeline.demo import generate
from pipeline.demo.captions import CRAWLED, PLAIN, write_caption
from pipeline.demo.config import DemoDataConfig
from pipeline.demo.glyphs import INK, GlyphBook
from pipeline.demo.manifest import MANIFEST, DemoManifest, load_manifest
from pipeline.demo.plans import crawled_things, mentioned_things
from pipeline.demo.scenes import Box, Painter, Thing, generator
from pipeline.errors import InputError

SMALL = {
    "detection_scenes": 2,
    "grounding_scenes": 2,
    "attributes_scenes": 2,
    "crawled_scenes": 3,
    "validation_scenes": 1,
    "evaluation_scenes": 1,
    "absent_scenes": 1,
    "photos": "false",
}


@pytest.fixture(scope="module")
def manifest() -> DemoManifest:
    return load_manifest()


@pytest.fixture(scope="module")
def book(manifest: DemoManifest) -> GlyphBook:
    return GlyphBook(manifest.fonts)


def test_families_are_apart_between_splits(manifest: DemoManifest) -> None:
    families = manifest.families(DemoDataConfig())
    names = [name for split in families.values() for name in split]
    assert len(set(names)) == len(names) >= 8
    assert len(families["train"]) >= 5
    files = {(manifest.fonts[n].package, manifest.fonts[n].file) for n in names}
    authors = {manifest.fonts[n].authors for n in names}
    assert len(files) == len(authors) == len(names)
    assert all(manifest.fonts[n].licence for n in names)


@pytest.mark.parametrize(
    ("field", "family", "message"),
    [
        ("evaluation_fonts", "bootstrap", "evaluation_fonts: bootstrap is used for validation scenes"),
        ("train_fonts", "wingdings", "train_fonts: no family 'wingdings'; known: fontawesome"),
        ("train_fonts", "elusive", "train_fonts: none of elusive draws"),
    ],
)
def test_wrong_families_are_named(manifest: DemoManifest, field: str, family: str, message: str) -> None:
    config = DemoDataConfig.model_validate({field: (family,)})
    with pytest.raises(InputError, match=message):
        manifest.families(config)


def test_settings_are_checked() -> None:
    with pytest.raises(ValidationError, match="Extra inputs"):
        DemoDataConfig.model_validate({"sceens": 3})
    with pytest.raises(ValidationError, match="small < large"):
        DemoDataConfig(small=(20, 40))
    with pytest.raises(ValidationError, match="together at most 1"):
        DemoDataConfig(useless_share=0.7, broken_share=0.6)


def test_another_font_file_is_refused(manifest: DemoManifest) -> None:
    entry = manifest.fonts["ionicons"]
    with pytest.raises(InputError, match=r"want version 1\.1\.1"):
        entry.model_copy(update={"sha256": "0" * 64}).path()
    with pytest.raises(InputError, match="not installed"):
        entry.model_copy(update={"package": "no_such_icons"}).path()
    with pytest.raises(InputError, match="bell: no glyph 'bellow'"):
        entry.model_copy(update={"glyphs": {"bell": ("bellow",)}}).codepoints()


def test_a_wrong_manifest_names_the_field(tmp_path: Path) -> None:
    text = MANIFEST.read_text()
    wrong = tmp_path / "demo.yaml"
    wrong.write_text(text.replace("base_nouns: [airplane,", "base_nouns: [bell,"))
    with pytest.raises(InputError, match="duplicate noun"):
        load_manifest(wrong)
    wrong.write_text(text.replace("split: evaluation", "split: examination"))
    with pytest.raises(InputError, match=r"demo.yaml: fonts.fluent.split"):
        load_manifest(wrong)
    wrong.write_text("fonts: [")
    with pytest.raises(InputError, match="not YAML"):
        load_manifest(wrong)
    with pytest.raises(InputError, match="no such file"):
        load_manifest(tmp_path / "none.yaml")


def test_the_manifest_describes_every_set() -> None:
    described = yaml.safe_load(MANIFEST.read_text())["sets"]
    assert set(described) == set(generate.SETS) - {generate.ABSENT}
    config = DemoDataConfig()
    assert described["detection"]["counts"]["images"] == config.detection_scenes
    assert described["grounding"]["counts"]["images"] == config.grounding_scenes
    assert described["attributes"]["counts"]["images"] == config.attributes_scenes
    assert described["crawl"]["counts"]["images"] == config.crawled_scenes
    assert described["crawl"]["counts"]["shards"] == -(-config.crawled_scenes // config.shard_size)
    assert described["eval_novel"]["counts"] == {"images": config.evaluation_scenes, "objects": 1200}
    assert all(entry["licence"] and len(entry["sha256"]) == 64 for entry in described.values())


@pytest.mark.slow
def test_the_manifests_checksums_hold(tmp_path: Path) -> None:
    described = yaml.safe_load(MANIFEST.read_text())["sets"]
    made = generate.generate_demo(tmp_path, DemoDataConfig()).sets
    assert {n: s.sha256 for n, s in made.items()} == {n: e["sha256"] for n, e in described.items()}


def test_every_glyph_is_drawn_and_tight(manifest: DemoManifest, book: GlyphBook) -> None:
    for family, entry in manifest.fonts.items():
        for noun, drawings in entry.glyphs.items():
            for drawing in range(len(drawings)):
                mask = book.mask(family, noun, drawing, side=24, turns=2, mirrored=True)
                assert 20 <= max(mask.shape) <= 25 and min(mask.shape) >= 6, (family, noun)
                ink = mask >= INK
                assert ink[0].any() and ink[-1].any() and ink[:, 0].any() and ink[:, -1].any()
                assert 0.1 < ink.mean() < 0.97, (family, noun)


def test_no_held_out_drawing_was_seen_in_training(manifest: DemoManifest, book: GlyphBook) -> None:
    families = manifest.families(DemoDataConfig())
    plain = {"side": 40, "turns": 0, "mirrored": False}
    for noun in manifest.base_nouns + manifest.novel_nouns:
        for split in ("validation", "evaluation"):
            held_out = book.mask(families[split][0], noun, 0, **plain)
            for family in set(book.families(noun)) & set(families["train"]):
                for drawing in range(book.drawings(family, noun)):
                    seen = book.mask(family, noun, drawing, **plain)
                    same = seen.shape == held_out.shape and (abs(seen - held_out.astype(int)) > 64).mean() < 0.005
                    assert not same, (noun, family, split)


def test_boxes_are_tight_around_what_was_drawn(manifest: DemoManifest, book: GlyphBook) -> None:
    painter = Painter(DemoDataConfig(max_overlap=0), book, ("fluent",), manifest.colours)
    things = [
        Thing("star", "black", "large"),
        Thing("heart", "black", "small"),
        Thing("moon", "black", "small"),
    ]
    for i in range(30):
        scene = painter.paint(things, generator(0, "tight", i))
        dark = scene.pixels.max(axis=2) < 70
        for x1, y1, x2, y2 in (tuple(int(v) for v in box) for box in scene.boxes):
            inside = dark[y1:y2, x1:x2]
            rows, columns = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
            slack = (rows[0], y2 - y1 - 1 - rows[-1], columns[0], x2 - x1 - 1 - columns[-1])
            assert max(slack) <= 3
            dark[y1:y2, x1:x2] = False
        assert dark.mean() < 0.002, "ink outside every box"


def overlap(a: Box, b: Box) -> float:
    """Shared area over the smaller box's area."""
    w, h = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    smaller = min((a[2] - a[0]) * (a[3] - a[1]), (b[2] - b[0]) * (b[3] - b[1]))
    return max(0.0, w) * max(0.0, h) / smaller


def test_four_large_things_overlap_little(manifest: DemoManifest, book: GlyphBook) -> None:
    config = DemoDataConfig()
    painter = Painter(config, book, ("bootstrap",), manifest.colours)
    things = [Thing(n, "red", "large") for n in ("camera", "truck", "heart", "bell")]
    for i in range(50):
        boxes = painter.paint(things, generator(1, "crowd", i)).boxes
        assert all(overlap(boxes[a], boxes[b]) <= config.max_overlap for a in range(4) for b in range(a))


@pytest.mark.parametrize("templates", [PLAIN, CRAWLED])
def test_every_template_names_each_thing_once(templates: Mapping[int, tuple[str, ...]]) -> None:
    for n, options in templates.items():
        for template in options:
            assert template.count("{") == n and all(f"{{{i}}}" in template for i in range(n))


def test_crawled_captions(manifest: DemoManifest) -> None:
    config = DemoDataConfig()
    novel = set(manifest.novel_nouns)
    texts, with_novel = set(), 0
    for i in range(400):
        rng = generator(2, "captions", i)
        colours = list(manifest.colours)
        things = crawled_things(manifest.base_nouns, manifest.novel_nouns, colours, rng, config)
        assert 2 <= len(things) <= 4 and len({t.noun for t in things}) == len(things)
        named = mentioned_things(things, rng, config)
        caption = write_caption(things, named, rng, config, templates=CRAWLED, style=True)
        assert [p.thing for p in caption.phrases] == named
        for phrase in caption.phrases:
            assert caption.words(phrase).lower().endswith(things[phrase.thing].noun)
        texts.add(caption.text)
        with_novel += any(things[i].noun in novel for i in named)
    assert with_novel > 300 and len(texts) > 390


def test_the_command(tmp_path: Path) -> None:
    runner = CliRunner()
    changes = [word for name, value in SMALL.items() for word in ("--set", f"{name}={value}")]
    done = runner.invoke(main, ["--out", str(tmp_path / "demo"), "--seed", "5", *changes])
    assert done.exit_code == 0, done.output
    assert "eval_novel: 1 images, 4 objects (novel; coco) in eval_novel" in done.output
    summary = generate.read_summary(tmp_path / "demo")
    assert summary is not None and summary.config.seed == 5
    wrong = runner.invoke(main, ["--out", str(tmp_path / "demo"), "--set", "crawled_scene=5"])
    assert wrong.exit_code == 2 and "did you mean crawled_scenes?" in wrong.output
