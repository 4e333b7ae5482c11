"""Generator of the demo data: labelled sets, a crawl with hidden gold boxes, and held-out scenes."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from numpy.random import Generator
from pydantic import ValidationError

from pipeline.demo import formats, plans
from pipeline.demo.captions import CRAWLED, PLAIN, Caption, useless_caption, write_caption
from pipeline.demo.config import DemoDataConfig, DemoDataSummary, SetSummary
from pipeline.demo.glyphs import GlyphBook
from pipeline.demo.manifest import DemoManifest, load_manifest
from pipeline.demo.photos import write_photo_shard
from pipeline.demo.scenes import Painter, Scene, Thing, generator
from pipeline.errors import InputError
from pipeline.execution.options import WorkLeft
from pipeline.execution.progress import Progress, Silent
from pipeline.execution.reports import StageReport
from pipeline.io.atomic import write_json
from pipeline.io.hashing import digest_bytes, digest_file, digest_json

VERSION = 2
"""Increase it when the same settings give different bytes than before."""
MARKER = "demo-data.json"
ABSENT = "eval_absent"
"""The set that is drawn only with ``absent_scenes``."""
SUMMARY = "summary.json"
SETS = (
    "detection",
    "grounding",
    "attributes",
    "crawl",
    "crawl_gold",
    "val_base",
    "val_novel",
    "eval_base",
    "eval_novel",
    ABSENT,
    "photos",
)

Nouns = Literal["base", "novel", "base and novel", "photographs"]


def generate_demo(
    out: Path, config: DemoDataConfig, *, progress: Progress = Silent(), check_only: bool = False
) -> DemoDataSummary:
    """Generate all sets below ``out``, as described in ``data_manifests/demo.yaml``.

    A folder that already has the output of these settings is left unchanged; the sets of other
    settings are replaced. ``check_only``: do not generate anything.

    Raises:
        InputError: a font or a photograph is missing, a font family is in two splits, or ``out`` has other files.
        WorkLeft: with ``check_only``, the folder does not have the output of these settings.
    """
    out = Path(out)
    manifest = load_manifest()
    families = manifest.families(config)
    fingerprint = digest_json(
        {
            "version": VERSION,
            "config": config.model_dump(mode="json"),
            "manifest": manifest.model_dump(mode="json"),
        }
    )
    done = read_summary(out)
    if done is not None and done.fingerprint == fingerprint:
        return done
    if check_only:
        raise WorkLeft
    _clear(out, [name for name in SETS if config.absent_scenes or name != ABSENT])
    made = list(_Generator(out, config, manifest, families, progress).run())
    summary = DemoDataSummary(
        fingerprint=fingerprint,
        config=config,
        base_nouns=manifest.base_nouns,
        novel_nouns=manifest.novel_nouns,
        fonts=families,
        sets={s.name: s for s in made},
    )
    write_json(out / SUMMARY, summary.model_dump(mode="json"))
    return summary


def read_summary(out: Path) -> DemoDataSummary | None:
    """Summary of a folder finished by ``generate_demo``, else None."""
    try:
        return DemoDataSummary.model_validate_json((out / SUMMARY).read_bytes())
    except (FileNotFoundError, NotADirectoryError, ValidationError):
        return None


@dataclass
class _Generator:
    out: Path
    config: DemoDataConfig
    manifest: DemoManifest
    families: dict[str, tuple[str, ...]]
    progress: Progress

    def run(self) -> Iterator[SetSummary]:
        used = {name: self.manifest.fonts[name] for names in self.families.values() for name in names}
        book = GlyphBook(used)
        self._painters = {
            split: Painter(self.config, book, names, self.manifest.colours) for split, names in self.families.items()
        }
        self._colours = tuple(self.manifest.colours)
        yield self._detection()
        yield self._grounding()
        yield self._attributes()
        yield from self._crawl()
        for prefix, split, count in (
            ("val", "validation", self.config.validation_scenes),
            ("eval", "evaluation", self.config.evaluation_scenes),
        ):
            yield self._held_out(f"{prefix}_base", split, count, "base", self.manifest.base_nouns)
            yield self._held_out(f"{prefix}_novel", split, count, "novel", self.manifest.novel_nouns)
        if self.config.absent_scenes:
            yield self._absent()
        if self.config.photos:
            n = write_photo_shard(
                self.out,
                manifest=self.manifest,
                max_side=self.config.max_photo_side,
                quality=self.config.jpeg_quality,
            )
            yield self._summary("photos", "crawl", "img2dataset", "photographs", images=n, shards=1)

    def _detection(self) -> SetSummary:
        nouns, scenes = self.manifest.base_nouns, []
        for i in self._counted("detection", self.config.detection_scenes):
            rng = generator(self.config.seed, "detection", i)
            things = plans.detection_things(nouns, self._colours, rng)
            scenes.append(self._painters["train"].paint(things, rng))
        labels = formats.coco_detection(scenes, nouns, "demo detection set: BASE nouns by name")
        return self._labelled("detection", "detection", "coco", "base", labels, scenes)

    def _grounding(self) -> SetSummary:
        plan = partial(plans.grounding_things, self.manifest.base_nouns, self._colours, config=self.config)
        what = "demo grounding set: BASE nouns in captions"
        return self._captioned("grounding", self.config.grounding_scenes, plan, what, nouns=True)

    def _attributes(self) -> SetSummary:
        plan = partial(plans.attribute_things, self.manifest.base_nouns, self._colours)
        what = "demo attributes set: things by their colours alone"
        return self._captioned("attributes", self.config.attributes_scenes, plan, what, nouns=False)

    def _captioned(
        self, name: str, count: int, plan: Callable[[Generator], list[Thing]], what: str, *, nouns: bool
    ) -> SetSummary:
        scenes: list[Scene] = []
        captions: list[Caption] = []
        for i in self._counted(name, count):
            rng = generator(self.config.seed, name, i)
            things = plan(rng)
            scenes.append(self._painters["train"].paint(things, rng))
            order = plans.mentioned_things(things, rng, self.config)
            captions.append(write_caption(things, order, rng, self.config, templates=PLAIN, style=False, nouns=nouns))
        labels = formats.mdetr_grounding(scenes, captions, what)
        return self._labelled(name, "grounding", "mdetr", "base", labels, scenes)

    def _crawl(self) -> Iterator[SetSummary]:
        total, per_shard = self.config.crawled_scenes, self.config.shard_size
        broken, useless = self._spoiled(total)
        for folder in ("crawl", "crawl_gold"):
            (self.out / folder).mkdir(parents=True)
        novel, shards, phrases = set(self.manifest.novel_nouns), 0, 0
        indices = self._counted("crawl", total)
        for first in range(0, total, per_shard):
            samples: list[formats.CrawlSample] = []
            drawn: list[tuple[Scene, Caption, bool]] = []
            for i in [next(indices) for _ in range(min(per_shard, total - first))]:
                scene, caption = self._crawled_scene(i, i in useless)
                jpeg = scene.jpeg(self.config.jpeg_quality)
                if i in broken:
                    jpeg = _break(jpeg, broken[i])
                url = f"https://images.example/{i:08d}.jpg"
                samples.append(formats.CrawlSample(jpeg, caption.text, url, scene.width, scene.height))
                drawn.append((scene, caption, i in broken))
            keys = formats.write_crawl_shard(self.out / "crawl", shards, samples)
            gold = [
                formats.gold_row(key, caption, phrase, scene, novel)
                for key, (scene, caption, is_broken) in zip(keys, drawn, strict=True)
                if not is_broken
                for phrase in caption.phrases
            ]
            formats.write_gold(self.out / "crawl_gold" / f"{shards:05d}.parquet", gold)
            shards, phrases = shards + 1, phrases + len(gold)
        list(indices)
        both: Nouns = "base and novel"
        counts = {"images": total, "shards": shards, "broken": len(broken), "useless": len(useless)}
        yield self._summary("crawl", "crawl", "img2dataset", both, **counts)
        counts = {"images": total - len(broken) - len(useless), "shards": shards, "objects": phrases}
        yield self._summary("crawl_gold", "gold", "parquet", both, **counts)

    def _crawled_scene(self, i: int, useless: bool) -> tuple[Scene, Caption]:
        rng = generator(self.config.seed, "crawl", i)
        m = self.manifest
        things = plans.crawled_things(m.base_nouns, m.novel_nouns, self._colours, rng, self.config)
        scene = self._painters["train"].paint(things, rng)
        if useless:
            return scene, useless_caption(rng)
        order = plans.mentioned_things(things, rng, self.config)
        return scene, write_caption(things, order, rng, self.config, templates=CRAWLED, style=True)

    def _spoiled(self, total: int) -> tuple[dict[int, int], set[int]]:
        """(index of a broken image -> way of breaking it, indices of useless captions), disjoint."""
        order = generator(self.config.seed, "spoiled").permutation(total).tolist()
        n_broken = round(total * self.config.broken_share)
        n_useless = min(round(total * self.config.useless_share), total - n_broken)
        return {i: way for way, i in enumerate(order[:n_broken])}, set(order[n_broken : n_broken + n_useless])

    def _held_out(self, name: str, split: str, count: int, which: Nouns, nouns: Sequence[str]) -> SetSummary:
        scenes = []
        for i in self._counted(name, count):
            rng = generator(self.config.seed, name, i)
            scenes.append(self._painters[split].paint(plans.held_out_things(nouns, self._colours, rng), rng))
        title = f"demo {name}: four different {which.upper()} nouns a scene"
        labels = formats.coco_detection(scenes, nouns, title)
        prompts = formats.prompts(scenes, nouns)
        return self._labelled(name, "evaluation", "coco", which, labels, scenes, prompts=prompts)

    def _absent(self) -> SetSummary:
        name, nouns = ABSENT, (*self.manifest.base_nouns, *self.manifest.novel_nouns)
        scenes, absent = [], []
        for i in self._counted(name, self.config.absent_scenes):
            rng = generator(self.config.seed, name, i)
            scenes.append(self._painters["evaluation"].paint(plans.held_out_things(nouns, self._colours, rng), rng))
            absent.append(plans.absent_phrases(scenes[-1].things, nouns, self._colours, rng))
        labels = formats.coco_phrases(scenes, absent, "demo eval_absent: things by colour and noun, and absent ones")
        return self._labelled(name, "evaluation", "coco", "base and novel", labels, scenes)

    def _labelled(
        self, name: str, kind: str, form: str, nouns: Nouns, labels: dict[str, Any], scenes: Sequence[Scene],
        **others: dict[str, Any],
    ) -> SetSummary:  # fmt: skip
        formats.write_labelled(self.out / name, labels, scenes, self.config.jpeg_quality, **others)
        return self._summary(name, kind, form, nouns, images=len(scenes), objects=len(labels["annotations"]))

    def _counted(self, name: str, total: int) -> Iterator[int]:
        self.progress.begin(name, total, "scenes")
        for i in range(total):
            yield i
            self.progress.advance(1, "scenes")
        self.progress.end(StageReport(stage=name))

    def _summary(self, name: str, kind: Any, form: Any, nouns: Nouns, **counts: int) -> SetSummary:
        digest = folder_digest(self.out / name)
        return SetSummary(name=name, kind=kind, format=form, path=name, nouns=nouns, sha256=digest, **counts)


def folder_digest(folder: Path) -> str:
    """SHA-256, in hex, of the sorted lines ``sha256 relative/name`` of all files in a folder."""
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    lines = [f"{digest_file(p)} {p.relative_to(folder).as_posix()}" for p in files]
    return digest_bytes("\n".join(lines).encode())


def _break(jpeg: bytes, way: int) -> bytes:
    """Truncate an image, empty it, or replace it by an HTML error page."""
    if way % 3 == 0:
        return jpeg[: len(jpeg) // 2]
    return b"" if way % 3 == 1 else b"<!DOCTYPE html><html><body><h1>403 Forbidden</h1></body></html>\n"


def _clear(out: Path, sets: Sequence[str]) -> None:
    """Remove the sets of an earlier run, and write the names of those that will be drawn.

    Raises:
        InputError: the folder has other files.
    """
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: is a file; want a folder")
    if out.is_dir() and any(out.iterdir()) and not (out / MARKER).is_file():
        raise InputError(f"{out}: has files that make-demo-data did not write; want a new or empty folder")
    for name in (SUMMARY, *SETS):
        path = out / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    write_json(out / MARKER, {"generator": "make-demo-data", "sets": list(sets)})
