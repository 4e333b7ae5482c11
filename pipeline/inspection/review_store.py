"""Regions of a store in the order in which a person reviews them, their verdicts so far, and their images."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from threading import RLock
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, ValidationError

from pipeline.data.records import Box
from pipeline.data.verdicts import (
    CODES_PER_PIXEL,
    DECISIONS,
    VERDICTS,
    Decision,
    Verdict,
    VerdictLog,
    Verdicts,
    read_log,
    rows,
)
from pipeline.drawing.boxes import Colour, phrase_colours
from pipeline.errors import InputError
from pipeline.execution.progress import Progress, Silent
from pipeline.execution.reports import StageReport
from pipeline.filtering.nms import pair_iou
from pipeline.filtering.review_order import (
    SAMPLES,
    Order,
    disagreement,
    draws,
    estimate,
    image_order,
    sample_order,
    strata_of,
    uncertain,
)
from pipeline.filtering.store import BOX, RegionShard, as_numpy
from pipeline.filtering.verdicts import JoinedVerdicts
from pipeline.inspection.label_store import CrawlImages
from pipeline.io.hashing import digest_json
from pipeline.io.paths import join, stem
from pipeline.io.strict_model import StrictModel, problem_lines
from pipeline.io.tables import read_table

CODES: tuple[str, ...] = ("", *DECISIONS)
"""A region's decision is its index here."""
SAME_PIXELS = 0.5 / CODES_PER_PIXEL
"""Corners that differ by no more are the same box, as of :data:`pipeline.data.verdicts.CODES_PER_PIXEL`."""
OUTSIDE = 1.0
"""Pixels by which a new box may reach out of its image."""
_EVIDENCE = ("verified", "agreed", "region_text")
Phrase = tuple[int | None, int | None, str]
"""Span, or name."""


class GivenVerdict(StrictModel):
    """A verdict as the page sends it; fields of :class:`pipeline.data.verdicts.Verdict`."""

    id: str = Field(min_length=8, max_length=64, pattern=r"^[0-9a-zA-Z-]+$")
    verdict: Decision
    shard: str
    key: str
    phrase: str
    start: int | None = None
    end: int | None = None
    box: Box | None = None
    boxes: tuple[Box, ...] = ()


@dataclass(frozen=True)
class ReviewOptions:
    """Choice and order of the regions.

    threshold: of the rule, by which ``uncertain`` goes. least: regions of a store of regions that score above it are
    reviewed; of a store of labels, those that are kept.
    """

    order: Order = "uncertain"
    threshold: float = 0.5
    least: float = 0.5
    seed: int = 0


class ReviewStore:
    """Regions to review. One of them takes some 35 bytes of memory.

    A stop is what the page shows at a time: an image with all its regions, or, in the orders of a sample, one region.

    Args:
        files: tables of regions or labels. crawl: shards, for images. phrases: folder of parse-phrases, for captions.
        verdicts: folder to append to; it need not exist. by: name of the person.

    Raises:
        InputError: a file is missing, or the store has no region to review or not the columns of the order.
    """

    def __init__(
        self,
        files: Sequence[str],
        *,
        crawl: Sequence[str],
        phrases: str | None,
        verdicts: str | Path,
        by: str,
        options: ReviewOptions,
        progress: Progress | None = None,
    ) -> None:
        self._files = {stem(path): path for path in files}
        self._shards, self._options, self._phrases_folder = list(self._files), options, phrases
        self._by = by
        self._store = files[0].rpartition("/")[0] or "."
        self._images, self._lock = CrawlImages(crawl), RLock()
        self._open = lru_cache(maxsize=8)(self._opened)
        self._phrase_rows = lru_cache(maxsize=32)(self._read_phrases)
        self._index(progress or Silent())
        self._log = VerdictLog(verdicts)
        self._seen: set[str] = set()
        self._fixed: dict[int, Box] = {}
        self._of_phrases: dict[tuple[str, str], dict[Phrase, tuple[str, tuple[Box, ...]]]] = {}
        self._decision = np.zeros(self.regions, np.uint8)
        self._judged, self._correct = np.zeros(self.regions, bool), np.zeros(self.regions, bool)
        self._held: dict[str, pa.Table] = {}
        if Path(verdicts).is_dir():
            self._read_verdicts(verdicts)

    def _opened(self, number: int) -> tuple[RegionShard, np.ndarray]:
        """(a shard with only its regions to review, (total,) bool of them)."""
        shard = RegionShard(self._files[self._shards[number]])
        if "status" in shard.columns:
            kept = as_numpy(pc.equal(shard.column("status").cast(pa.string()), "keep").cast(pa.uint8())) == 1
        else:
            kept = shard.numbers("score") > np.float32(self._options.least)
        shard.restrict(kept)
        return shard, kept

    def _index(self, progress: Progress) -> None:
        options = self._options
        parts: dict[str, list[np.ndarray]] = {
            name: [] for name in ("image", "draw", "score", "verified", "agreed", "phrase")
        }
        texts, counts, images, stores, self.total = list[pa.Array](), [0], [0], 0, 0
        progress.begin("index", len(self._shards))
        for number, name in enumerate(self._shards):
            shard, kept = self._open(number)
            codes, keys = shard.keys()
            parts["image"].append(codes.astype(np.int64) + images[-1])
            parts["draw"].append(draws(options.seed, name, shard.total)[kept])
            parts["score"].append(shard.numbers("score"))
            for column in ("verified", "agreed"):
                if column in shard.columns and options.order in ("uncertain", "disagreement"):
                    parts[column].append(shard.numbers(column).astype(np.float64))
            stores = sum(column.startswith("score_") for column in shard.columns)
            if options.order == "rare":
                of, texts_here = shard.texts()
                parts["phrase"].append(of.astype(np.int64) + sum(map(len, texts)))
                texts.append(texts_here.cast(pa.string()))
            counts.append(shard.size)
            images.append(images[-1] + len(keys))
            self.total += shard.total
            progress.advance(1, "shards")
        progress.end(StageReport(stage="index"))
        self._starts, self._first_image = np.cumsum(counts), np.array(images)
        for column in ("verified", "agreed"):
            if parts[column] and len(parts[column]) < len(self._shards):
                raise InputError(f"{self._store}: found shards with and without {column}; want it in all or none")
        values = {name: np.concatenate(found) if found else None for name, found in parts.items()}
        self._image: np.ndarray = np.zeros(0, np.int64) if values["image"] is None else values["image"]
        if not len(self._image):
            raise InputError(
                f"{self._store}: found no region to review of {self.total:,} (score above {options.least:g}, or kept "
                "labels); want a lower --threshold or --least"
            )
        self._order(values, stores, texts)

    def _order(self, values: Mapping[str, Any], stores: int, texts: list[pa.Array]) -> None:
        """Sequence of the regions and beginnings of the stops in it, by the options' order."""
        options, image, draw, score = self._options, values["image"], values["draw"], values["score"]
        verified, agreed = values["verified"], values["agreed"]
        self._stratum = np.zeros(len(image), np.int64)
        if options.order in SAMPLES:
            self._stratum = strata_of(score) if options.order == "stratified" else self._stratum
            self._sequence = sample_order(draw, self._stratum)
            self._stops = np.arange(len(image))
        else:
            if options.order == "uncertain":
                rank = uncertain(score, options.threshold, verified)
            elif options.order == "rare":
                text = pa.concat_arrays(texts).dictionary_encode().indices.to_numpy()[values["phrase"]]
                rank = np.bincount(text)[text].astype(np.float64)
            elif (agreed is None or stores < 2) and verified is None:
                raise InputError(
                    f"--order disagreement: {self._store}: found neither `agreed` nor `verified`; want a store that "
                    "merge-regions or verify apply wrote"
                )
            else:
                rank = disagreement(score, agreed if stores > 1 else None, stores, verified)
            self._sequence, self._stops = image_order(rank, draw, image)
        self._stratum_size = np.bincount(self._stratum)

    def _read_verdicts(self, folder: str | Path) -> None:
        log = read_log(folder)
        self._held = Verdicts(log.filter(pc.equal(log["kind"], "person"))).shards
        for number, name in enumerate(self._shards):
            if (table := self._held.get(name)) is None:
                continue
            shard, first = self._open(number)[0], int(self._starts[number])
            joined = JoinedVerdicts(shard, table)
            decision = joined.decisions(joined.region)
            judged, correct = joined.judge(shard)
            decision[judged & (decision == "")] = "reject"  # of the phrase as a whole
            here = slice(first, first + shard.size)
            self._decision[here] = pc.index_in(pa.array(decision, pa.string()), value_set=pa.array(CODES)).to_numpy()
            self._judged[here], self._correct[here] = judged, correct
            for row in np.flatnonzero(decision == "fixed").tolist():
                (box,) = table["boxes"][int(joined.region[row])].as_py()
                self._fixed[first + row] = tuple(box)

    def close(self) -> None:
        """Write all verdicts to the disk."""
        self._log.close()

    @property
    def regions(self) -> int:
        """Number of regions to review."""
        return len(self._image)

    @property
    def images(self) -> int:
        """Number of images that have any."""
        return len(np.unique(self._image))

    def start(self) -> dict[str, Any]:
        """Facts of the whole store for the page, and the stop to begin at."""
        options = asdict(self._options)
        names = self._open(0)[0].names
        return {
            "id": digest_json([str(Path(self._store).absolute()), self._shards])[:16], "stops": len(self._stops),
            "sample": self._options.order in SAMPLES, "store": self._store, "by": self._by, **options,
            "names": None if names is None else list(names.names), "progress": self.progress(),
        }  # fmt: skip

    def progress(self) -> dict[str, Any]:
        """Counts of decisions, the first stop with a region without one, and the estimate of precision."""
        with self._lock:
            counts = np.bincount(self._decision, minlength=len(CODES))
            undecided = self._decision[self._sequence] == 0
            at = int(undecided.argmax()) if counts[0] else len(undecided)
            found = None
            if self._options.order in SAMPLES:
                sample = self._sequence[:at]
                sample = sample[self._judged[sample]]
                judged, correct = (
                    np.bincount(self._stratum[of], minlength=len(self._stratum_size))
                    for of in (sample, sample[self._correct[sample]])
                )
                found = estimate(correct, judged, self._stratum_size)
        stop = int(np.searchsorted(self._stops, at, side="right")) - 1
        return {
            "regions": self.regions, "decided": int(self.regions - counts[0]), "open": stop,
            "beyond": int(self.regions - counts[0]) - at if self._options.order in SAMPLES else 0,
            "decisions": {name: int(n) for name, n in zip(CODES, counts, strict=True) if name and n},
            "estimate": None if found is None else asdict(found),
        }  # fmt: skip

    def stop(self, number: int) -> dict[str, Any] | None:
        """The image of a stop and the numbers of its regions to review, in order; None: there is no such stop."""
        if not 0 <= number < len(self._stops):
            return None
        ends = [*self._stops[number : number + 2].tolist(), len(self._sequence)]
        due = self._sequence[ends[0] : ends[1]]
        with self._lock:
            return {"stop": number, "due": due.tolist(), "image": self._shown(int(self._image[due[0]]))}

    def _place(self, image: int) -> tuple[int, RegionShard, int]:
        """(number of the shard, the shard, code of the key in it)."""
        number = int(np.searchsorted(self._first_image, image, side="right")) - 1
        return number, self._open(number)[0], image - int(self._first_image[number])

    def image(self, image: int) -> bytes | None:
        """Encoded image; None: there is no such image. Raises InputError or OSError if it cannot be read."""
        if not 0 <= image < self._first_image[-1]:
            return None
        with self._lock:
            number, shard, code = self._place(image)
            key = shard.keys()[1][code].as_py()
        return self._images.read(self._shards[number], key)

    def _shown(self, image: int) -> dict[str, Any]:
        number, shard, code = self._place(image)
        name, key = self._shards[number], shard.keys()[1][code].as_py()
        here = np.flatnonzero(shard.keys()[0] == code)
        found = {column: shard.numbers(column)[here] for column in ("start", "end", "score", "height", "width", *BOX)}
        texts = shard.column("phrase" if shard.names is None else "name")
        of_phrase = [texts[row].as_py() for row in here.tolist()]
        evidence = {c: shard.numbers(c)[here] for c in _EVIDENCE if c in shard.columns}
        caption, phrases = (None, []) if shard.names is not None else self._caption(name, key)
        order = {phrase: n for n, phrase in enumerate(dict.fromkeys(phrases))}
        regions = []
        for i, row in enumerate(here.tolist()):
            region = int(self._starts[number]) + row
            span = (int(found["start"][i]), int(found["end"][i])) if shard.names is None else (None, None)
            fixed = self._fixed.get(region)
            regions.append(
                {
                    "region": region, "phrase": order.setdefault((*span, of_phrase[i]), len(order)),
                    "box": [float(found[c][i]) for c in BOX], "score": round(float(found["score"][i]), 4),
                    "verdict": CODES[self._decision[region]], "boxes": [fixed] if fixed else [],
                    "evidence": {c: round(float(v[i]), 4) for c, v in evidence.items() if not math.isnan(v[i])},
                }
            )  # fmt: skip
        held = self._phrase_verdicts(name, key)
        for phrase in held:
            order.setdefault(phrase, len(order))
        colours = phrase_colours(map(str, range(len(order))))
        return {
            "number": image, "shard": name, "key": key, "height": int(found["height"][0]),
            "width": int(found["width"][0]), "caption": caption, "regions": regions,
            "phrases": [_phrase(p, colours[str(n)], held.get(p, ("", ()))) for n, p in enumerate(order)],
        }  # fmt: skip

    def _caption(self, shard: str, key: str) -> tuple[str | None, list[Phrase]]:
        """Caption and phrases of an image; (None, []) without parse-phrases' folder, or if it has not the image."""
        if self._phrases_folder is None:
            return None, []
        table = self._phrase_rows(shard)
        found = table.filter(pc.equal(table["key"], key)).to_pylist()
        phrases: list[Phrase] = [(row["start"], row["end"], row["phrase"]) for row in found]
        return (found[0]["caption"], phrases) if found else (None, [])

    def _read_phrases(self, shard: str) -> pa.Table:
        columns = ["key", "caption", "phrase", "start", "end"]
        return read_table(join(self._phrases_folder or "", f"{shard}.parquet"), columns, strings=["caption", "phrase"])

    def _phrase_verdicts(self, shard: str, key: str) -> dict[Phrase, tuple[str, tuple[Box, ...]]]:
        """Decision and boxes of each phrase with a verdict as a whole."""
        if (shard, key) not in self._of_phrases:
            table = self._held.get(shard, VERDICTS.empty_table())
            mine = table.filter(pc.and_(pc.equal(table["key"], key), pc.is_null(table["box"])))
            self._of_phrases[shard, key] = {
                (verdict.start, verdict.end, verdict.phrase): (verdict.verdict, verdict.boxes) for verdict in rows(mine)
            }
        return self._of_phrases[shard, key]

    def save(self, given: Sequence[GivenVerdict]) -> dict[str, str]:
        """Append verdicts; returns the reason of each one, by its id, that the store has no place for.

        The others are with the system when this returns. A repeated id counts once.

        Raises:
            InputError: the folder cannot be written to; none was saved.
        """
        refused, accepted = dict[str, str](), list[tuple[Verdict, int | None]]()
        with self._lock:
            for one in given:
                try:
                    if one.id not in self._seen:
                        accepted.append(self._checked(one))
                except (InputError, ValidationError) as error:
                    lines = problem_lines(error) if isinstance(error, ValidationError) else [str(error)]
                    refused[one.id] = lines[0]
            self._log.append(*(verdict for verdict, _ in accepted))
            for verdict, region in accepted:
                self._note(verdict, region)
                self._seen.add(verdict.id)
        return refused

    def _checked(self, given: GivenVerdict) -> tuple[Verdict, int | None]:
        """(the verdict to append, number of its region; None: of the phrase, or of a region not under review)."""
        if given.shard not in self._files:
            raise InputError(f"{given.shard}: found no such shard in {self._store}; want a verdict of this store")
        number = self._shards.index(given.shard)
        shard, region = self._open(number)[0], None
        row = _find(shard, given)
        if row is not None and given.box is not None:
            region = int(self._starts[number]) + row
        if row is None:  # shown with a lower threshold before
            shard = RegionShard(self._files[given.shard])
            row = _find(shard, given)
        if row is None:
            what = f"key {given.key}" if given.box is None else f"region of {given.phrase!r} at {list(given.box)}"
            raise InputError(
                f"{given.shard}/{given.key}: found no {what}; the store was written anew since it was shown"
            )
        if given.box is None and given.boxes:
            self._check_phrase(shard, given)
        height, width = (int(shard.numbers(side)[row]) for side in ("height", "width"))
        for x1, y1, x2, y2 in given.boxes:
            if min(x1, y1) < -OUTSIDE or x2 > width + OUTSIDE or y2 > height + OUTSIDE:
                raise InputError(f"box {(x1, y1, x2, y2)}: reaches out of the image; want one in {width} x {height}")
        verdict = Verdict(
            **given.model_dump(), by=self._by, height=height, width=width, store=self._store,
            revision=shard.footer.get("fingerprint", ""),
        )  # fmt: skip
        return verdict, region

    def _check_phrase(self, shard: RegionShard, given: GivenVerdict) -> None:
        known: Sequence[Phrase] = []
        if shard.names is not None:
            known = [(None, None, name) for name in shard.names.names]
        elif self._phrases_folder is not None:
            known = self._caption(given.shard, given.key)[1]
        if (given.start, given.end, given.phrase) not in known and not _rows_of(shard, given).any():
            raise InputError(f"{given.shard}/{given.key}: found the phrase {given.phrase!r}; want one of its caption")

    def _note(self, verdict: Verdict, region: int | None) -> None:
        decision = "" if verdict.verdict == "withdrawn" else verdict.verdict
        if verdict.box is None:
            of_image = self._phrase_verdicts(verdict.shard, verdict.key)
            of_image[verdict.start, verdict.end, verdict.phrase] = (decision, verdict.boxes)
        elif region is not None:
            self._decision[region] = CODES.index(decision)
            self._judged[region] = decision in ("accept", "reject", "fixed")
            self._correct[region] = decision == "accept"
            self._fixed.pop(region, None)
            if decision == "fixed":
                self._fixed[region] = verdict.boxes[0]
                old, new = (np.array([box]) for box in (verdict.box, verdict.boxes[0]))
                self._correct[region] = bool(pair_iou(old, new)[0] >= 0.5)


def _phrase(phrase: Phrase, colour: Colour, held: tuple[str, tuple[Box, ...]]) -> dict[str, Any]:
    start, end, text = phrase
    return {
        "start": start, "end": end, "phrase": text, "colour": "#{:02x}{:02x}{:02x}".format(*colour),
        "verdict": held[0], "boxes": held[1],
    }  # fmt: skip


def _rows_of(shard: RegionShard, given: GivenVerdict) -> np.ndarray:
    """(size,) bool: regions of the image, and of the phrase of the verdict."""
    codes, keys = shard.keys()
    of = codes == pc.index(keys, given.key).as_py()
    if shard.names is not None:
        texts, names = shard.texts()
        return np.asarray(of & (texts == pc.index(names, given.phrase.lower()).as_py()))
    return np.asarray(of & (shard.numbers("start") == given.start) & (shard.numbers("end") == given.end))


def _find(shard: RegionShard, given: GivenVerdict) -> int | None:
    """Row of the verdict's region; without box: of any region of its image; None: there is none."""
    codes, keys = shard.keys()
    if given.box is None:
        found = np.flatnonzero(codes == pc.index(keys, given.key).as_py())
    else:
        rows_of = np.flatnonzero(_rows_of(shard, given))
        corners = np.stack([shard.numbers(c)[rows_of] for c in BOX], 1)
        away = np.abs(corners - np.array(given.box)).max(1, initial=0)
        found = rows_of[away <= SAME_PIXELS]
    return int(found[0]) if len(found) else None
