"""Make training records of a shard's labels: regions, texts, and images copied or linked."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence, Set

import pyarrow as pa

from pipeline.config import BuildShardsConfig
from pipeline.data.caption_phrases import CaptionPhrases, read_caption_phrases
from pipeline.data.crawl import image_of
from pipeline.data.image_names import footer_image_names
from pipeline.data.images import ImageError, image_size
from pipeline.data.keys import shard_key
from pipeline.data.name_list import NameList, footer_names
from pipeline.data.records import LABELS, Box, DatasetCard, GroundingRecord, ImageLink, Region
from pipeline.data.verdicts import Verdict
from pipeline.data.verdicts import rows as verdict_rows
from pipeline.errors import InputError
from pipeline.execution.reports import Tally
from pipeline.io.files import file_size
from pipeline.io.paths import is_url
from pipeline.io.samples import read_samples
from pipeline.io.tables import footer, read_table
from pipeline.io.tars import TarProblems, TarSample
from pipeline.io.virtual_shards import virtual_shard
from pipeline.labelling.verdict_rows import RevisedRows, Row, revise
from pipeline.phrases.cleaning import plain_text


def pseudo_label_card(dataset: str, names: NameList | None = None) -> DatasetCard:
    """Dataset card of a set of pseudo-labels: of a detection set of the class names, if there are any."""
    return DatasetCard(
        name=dataset, kind="grounding" if names is None else "detection",
        label_space=None if names is None else names.names, source="pseudo-labels; each region names its annotator",
    )  # fmt: skip


def label_names(labels: str) -> NameList | None:
    """Class names that a file of labels is of; None for labels of captions' phrases.

    Raises:
        InputError: no such file, or not one of filter-boxes.
    """
    return footer_names(footer(read_table(labels, ["key", "status"]).schema), labels)


class ShardLabels:
    """The labels of one crawl shard, as records; ``samples`` and ``regions`` are tallies of the records given.

    Args:
        phrases: file that parse-phrases wrote; None for labels of class names. labels: file that
            filter-boxes wrote.
        without: keys of images to leave out, counted as ``near_duplicate``.
        verdicts: on the shard's regions, of :data:`pipeline.data.verdicts.VERDICTS`; they outrank the
            labels (:func:`pipeline.labelling.verdict_rows.revise`). ``decided`` counts their effects.

    Raises:
        InputError: no such file, or not one that these stages wrote.
    """

    def __init__(
        self, phrases: str | None, labels: str, dataset: str, config: BuildShardsConfig,
        without: Set[str] = frozenset(), verdicts: pa.Table | None = None,
    ) -> None:  # fmt: skip
        self._phrases, rows = {} if phrases is None else read_caption_phrases(phrases), dict[str, list[Row]]()
        table = read_table(labels, LABELS, optional=["name", "mask"])
        notes = footer(table.schema)
        self.names = footer_names(notes, labels)
        self._of_images = footer_image_names(notes, self.names, labels)
        if self.names is None and phrases is None:
            raise InputError(
                f"{labels}: found labels of captions; want the folder that parse-phrases wrote (--phrases)"
            )
        for row in table.to_pylist():
            rows.setdefault(row["key"], []).append(row)
        if self._of_images is not None and (strange := rows.keys() - self._of_images.keys()):
            raise InputError(f"{labels}: found labels of {min(strange)}, of whose names its footer does not say")
        self._sizes = {key: (of_image[0]["height"], of_image[0]["width"]) for key, of_image in rows.items()}
        self.decided, self._revised, self.notes = Counter[str](), dict[str, RevisedRows](), list[str]()
        self._by_lower = {} if self.names is None else {name.lower(): name for name in self.names.names}
        if verdicts is not None:
            self._revise(labels, rows, verdicts)
        self._annotator = notes.get("teacher") or None
        self._rows = {key: of_image for key, of_image in rows.items() if key not in without}
        self._dataset, self._config, self._labelled = dataset, config, rows.keys()
        self.samples, self.regions = Tally(), Tally()
        self.samples.drop("no_label", sum(key not in rows for key in self._phrases))
        for key in without & rows.keys():
            self.samples.drop("near_duplicate")
            self.regions.drop("near_duplicate", len(rows[key]))

    def numbers(self) -> dict[str, float]:
        """Effects of the verdicts, for a report: ``verdicts_accepted`` and so on."""
        return {f"verdicts_{effect}": float(n) for effect, n in sorted(self.decided.items()) if n}

    def _revise(self, labels: str, rows: dict[str, list[Row]], verdicts: pa.Table) -> None:
        """Apply verdicts to the rows by key, in place.

        Raises:
            InputError: more than half of them are of other images or phrases.
        """
        by_key: dict[str, list[Verdict]] = {}
        for verdict in verdict_rows(verdicts):
            by_key.setdefault(verdict.key, []).append(verdict)
        unknown: list[Verdict] = []
        for key, of_key in by_key.items():
            before = rows.get(key, [])
            revised = revise(before, of_key, self._phrase_of)
            sizes = {(verdict.height, verdict.width) for verdict in of_key} | {
                self._sizes.get(key, (of_key[0].height, of_key[0].width))
            }
            if len(sizes) > 1:
                raise InputError(
                    f"{labels}: {key}: found verdicts on an image of other height and width: "
                    f"{' and '.join(f'{h} x {w}' for h, w in sorted(sizes))}; want verdicts on these images"
                )
            unknown += revised.unknown
            if len(revised.unknown) == len(of_key):
                continue
            self.decided.update(revised.counts)
            self._revised[key], rows[key] = revised, revised.rows
            if not revised.rows and not revised.absent:
                del rows[key]
            self._sizes.setdefault(key, (of_key[0].height, of_key[0].width))
        if 2 * len(unknown) > len(verdicts):
            raise InputError(
                f"{labels}: {len(unknown)} of the {len(verdicts)} verdicts are of images or phrases that it does not "
                f"have, first {unknown[0].phrase!r} of {unknown[0].key}; want verdicts on the regions of these labels"
            )
        self.decided.update({"unknown_phrase": len(unknown)} if unknown else {})
        self.notes += [f"{v.key}: found a verdict of {v.phrase!r}, which it does not have" for v in unknown]

    def _phrase_of(self, verdict: Verdict) -> Row | None:
        """Columns of a new row of the verdict's phrase; None if the image has no such phrase."""
        if self.names is not None:
            name = self._by_lower.get(verdict.phrase.lower())
            return None if name is None else {"name": name}
        phrases = self._phrases.get(verdict.key)
        span = (verdict.start, verdict.end)
        if phrases is None or span not in phrases.spans or phrases.caption[slice(*span)] != verdict.phrase:
            return None
        return {"phrase_row": phrases.rows[phrases.spans.index(span)]}

    def alone(self) -> Iterator[tuple[str, GroundingRecord]]:
        """(key in the crawl, record) of every labelled image, without reading the crawl."""
        for key, rows in self._rows.items():
            yield key, self._record(key, rows)

    def joined(
        self,
        crawl: str,
        image_as: Callable[[TarSample], tuple[dict[str, bytes], tuple[int, int]]],
        problems: TarProblems,
    ) -> Iterator[tuple[str, GroundingRecord, dict[str, bytes]]]:
        """(key in the crawl, record, image files) in the order of the crawl shard.

        ``image_as``: sample -> (image files, (height, width)).
        """
        waiting = set(self._rows)
        for sample in read_samples(crawl, problems):
            if sample.key not in waiting:
                if self.names is not None and sample.key not in self._labelled:
                    self.samples.drop("no_label")
                continue
            waiting.discard(sample.key)
            rows = self._rows[sample.key]
            try:
                files, size = image_as(sample)
                if size != (labelled := self._sizes[sample.key]):
                    raise ImageError("image_changed", f"labelled at {labelled[0]} x {labelled[1]} pixels")
            except ImageError as error:
                self.samples.drop(error.reason)
                self.regions.drop("image_lost", len(rows))
                problems.notes.append(f"{sample.key}: {error}")
                continue
            yield sample.key, self._record(sample.key, rows), files
        for key in waiting:
            self.samples.drop("not_in_shard")
            self.regions.drop("image_lost", len(self._rows[key]))

    def _record(self, key: str, rows: Sequence[Row]) -> GroundingRecord:
        size, phrases, revised = self._sizes[key], self._phrases.get(key), self._revised.get(key)
        of = (rows, self._annotator, self._config, revised)
        if self.names is not None:
            own = None if self._of_images is None else self._of_images.get(key, ())
            record = make_detection_record(key, self._dataset, size, self.names, *of, own)
        elif phrases is None or not {row["phrase_row"] for row in rows} <= set(phrases.rows):
            raise InputError(f"{key}: labels of phrases that the phrases file does not have; are both of one run?")
        else:
            record = make_record(key, self._dataset, size, phrases, *of)
        uncertain = sum(row["status"] == "uncertain" for row in rows)
        self.samples.keep()
        self.regions.keep(len(record.regions))
        self.regions.drop("uncertain_name", uncertain)
        self.regions.drop("outside_image", len(rows) - uncertain - len(record.regions))
        return record


def copied_image(sample: TarSample) -> tuple[dict[str, bytes], tuple[int, int]]:
    """(the stored image file, its (height, width)). It is not decoded: labelling has done so."""
    image = image_of(sample)
    if image is None:
        raise ImageError("no_image", "the sample has labels but no image")
    extension, data = image
    return {extension: data}, image_size(data)


class LinkedImages:
    """Gives links into a crawl shard (:class:`pipeline.data.records.ImageLink`) instead of images."""

    def __init__(self, shard: str, out: str) -> None:
        self._shard = shard if is_url(shard) or is_url(out) else os.path.relpath(shard, out)
        if virtual_shard(shard) is not None:
            raise InputError(f"{shard}: found images that are in no tar, which cannot be linked to; want link=false")
        if is_url(out) and not is_url(shard):
            raise InputError(f"{shard}: a link from {out} cannot lead to a local file; want both local, or both URLs")
        self._bytes = file_size(shard) or 0

    def __call__(self, sample: TarSample) -> tuple[dict[str, bytes], tuple[int, int]]:
        files, size = copied_image(sample)
        ((extension, data),) = files.items()
        if extension not in sample.offsets:
            raise InputError(f"{self._shard}: compressed, so its images have no place to link to; unpack it, or copy")
        link = ImageLink(
            shard=self._shard, shard_bytes=self._bytes, offset=sample.offsets[extension], bytes=len(data),
            extension=extension,
        )  # fmt: skip
        return {"link": link.model_dump_json().encode()}, size


def make_record(
    key: str, dataset: str, size: tuple[int, int], phrases: CaptionPhrases, rows: Sequence[Row],
    annotator: str | None, config: BuildShardsConfig, revised: RevisedRows | None = None,
) -> GroundingRecord:  # fmt: skip
    """The grounding record of one image of ``size`` (height, width).

    Boxes are clipped to the image and rounded to a hundredth of a pixel; those without area are left
    out. A region's ``phrase`` is its text without entities, tags and invisible characters. Phrases
    without a kept region become ``uncertain``, as that the teacher finds nothing does not prove
    absence; but not those that are ``absent`` by verdict (``revised``).
    """
    span_of = dict(zip(phrases.rows, phrases.spans, strict=True))
    root_of = dict(zip(phrases.rows, phrases.roots, strict=True))
    regions, sure = [], set()
    for row in rows:
        if (box := clipped_box(row, size)) is None:
            continue
        span = span_of[row["phrase_row"]]
        ignore = row["status"] == "ignore"
        if not ignore:
            sure.add(row["phrase_row"])
        regions.append(Region(
            box=box, phrase=plain_text(phrases.caption[slice(*span)]), tokens_positive=(span,),
            score=_score(row), annotator=row.get("annotator") or annotator, root=root_of[row["phrase_row"]],
            mask=row.get("mask"), ignore=ignore,
        ))  # fmt: skip
    sure |= set() if revised is None else revised.absent
    uncertain = tuple(s for r, s in span_of.items() if r not in sure) if config.keep_uncertain else ()
    return GroundingRecord(
        key=shard_key(key), dataset=dataset, kind="grounding", image_size=size, caption=phrases.caption,
        regions=tuple(regions), uncertain=uncertain,
    )  # fmt: skip


def make_detection_record(
    key: str, dataset: str, size: tuple[int, int], names: NameList, rows: Sequence[Row],
    annotator: str | None, config: BuildShardsConfig, revised: RevisedRows | None = None,
    own: Sequence[str] | None = None,
) -> GroundingRecord:  # fmt: skip
    """The detection record of one image of ``size`` (height, width), with boxes as in :func:`make_record`.

    A region's ``phrase`` is its class name. Names that have rows but no kept region become
    ``not_exhaustive``, so that they are neither positive nor negative; all other names without a
    region are absent. ``own``: the names that the teacher was prompted with, if they are the image's own; the record
    is then one of a federated set, and only those of them without rows are ``verified_absent``: others are not known.
    """
    regions, sure = [], set()
    for row in rows:
        box = None if row["status"] == "uncertain" else clipped_box(row, size)
        if box is None:
            continue
        ignore = row["status"] == "ignore"
        if not ignore:
            sure.add(row["name"])
        regions.append(Region(
            box=box, phrase=row["name"], score=_score(row), annotator=row.get("annotator") or annotator,
            mask=row.get("mask"), ignore=ignore,
        ))  # fmt: skip
    unsure = {row["name"] for row in rows} | (set() if revised is None else revised.unsure)
    unsure = unsure - sure if config.keep_uncertain else set()
    absent = None if own is None else tuple(name for name in own if name not in sure | unsure)
    return GroundingRecord(
        key=shard_key(key), dataset=dataset, kind="detection", image_size=size, regions=tuple(regions),
        verified_absent=absent, not_exhaustive=tuple(name for name in names.names if name in unsure) or None,
    )  # fmt: skip


def _score(row: Row) -> float | None:
    return None if row["score"] is None else round(float(row["score"]), 4)


def clipped_box(row: Row, size: tuple[int, int]) -> Box | None:
    """A row's box, clipped to an image of ``size`` and rounded to a hundredth of a pixel; None without area."""
    height, width = size
    x1, y1 = max(0.0, float(row["x1"])), max(0.0, float(row["y1"]))
    x2, y2 = min(float(width), float(row["x2"])), min(float(height), float(row["y2"]))
    x1, y1, x2, y2 = (round(v, 2) for v in (x1, y1, x2, y2))
    return None if x2 <= x1 or y2 <= y1 else (x1, y1, x2, y2)
