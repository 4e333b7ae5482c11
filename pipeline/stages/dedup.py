"""dedup: list, and optionally drop, near-duplicates of evaluation images and of earlier images of the shards."""

from __future__ import annotations

from collections.abc import Sequence
from operator import itemgetter
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.dedup.exclusion_list import ExclusionList
from pipeline.dedup.image_sets import read_image_set, shard_set
from pipeline.dedup.perceptual_hash import HASH_VERSION
from pipeline.dedup.report import WITHIN, DedupReport, SetMatches, markdown
from pipeline.dedup.search import BLOCK, WORD_COLUMNS, MatchRules, Pairs, QueryImages, blocks, words_of
from pipeline.errors import InputError
from pipeline.execution.progress import Progress
from pipeline.execution.reports import StageReport, Tally
from pipeline.io.atomic import write_atomic, write_json
from pipeline.io.files import require_files
from pipeline.io.hashing import digest_json
from pipeline.io.paths import join
from pipeline.io.shard_patterns import expand_crawl
from pipeline.io.tables import read_table, write_table
from pipeline.stages import drop_samples, hash_images
from pipeline.stages.jobs import Dedup

STAGE = "dedup"
REASON = "near_duplicate"

MATCHES = pa.schema(
    [
        pa.field("shard", pa.string(), nullable=False),
        pa.field("key", pa.string(), nullable=False),
        pa.field("set", pa.string(), nullable=False),
        pa.field("set_part", pa.string(), nullable=False),
        pa.field("set_key", pa.string(), nullable=False),
        pa.field("distance", pa.int16(), nullable=False),
        pa.field("details", pa.int16(), nullable=False),
        pa.field("mirrored", pa.bool_(), nullable=False),
        pa.field("image", pa.uint64(), nullable=False),
        pa.field("set_image", pa.uint64(), nullable=False),
    ]
)
"""A row per pair: a training record; a similar evaluation record (``set_key`` is a path for a
folder of files), or with the set WITHIN an earlier record of the shards, which stays; how many bits
of the images' hashes differ, of the 64 that are searched and of all 256; and the images' digests,
which records of the same image share.
"""


def run(job: Dedup) -> tuple[DedupReport, StageReport | None]:
    """Write ``matches.parquet`` (MATCHES), ``report.json``, ``report.md`` and ``pairs.html``.

    Hashes stay in ``out/hashes``: shards and sets that were hashed before are not read again. With
    ``drop``, also write ``out/shards``: the shards without the matching samples.

    Returns:
        The report of the matches, and that of dropping them.

    Raises:
        InputError: two sets have the same name, or a local shard is missing.
        RunError: more than ``max_failed`` shards of one side failed.
    """
    out, progress = job.out, job.progress
    rules = MatchRules(job.distance, job.details, job.mirrored)
    against = [read_image_set(option) for option in job.against]
    names = [images.name for images in against] + [WITHIN] * job.within
    if not names:
        raise InputError("found nothing to compare the shards with; want --against EVALSET, or --within")
    if len(set(names)) < len(names):
        raise InputError(f"two evaluation sets are called {max(names, key=names.count)}; want --against NAME=SHARDS")
    training = shard_set("training", expand_crawl(job.shards))
    for images in (training, *against):
        require_files(images.shards.values())
    folders = {images.name: join(out, f"hashes/against/{images.name}") for images in against}
    hashed = {images.name: hash_images.run(images, folders[images.name], job) for images in against}
    folder = join(out, "hashes/shards")
    searched = hash_images.run(training, folder, job)
    failed = {name: {f.shard for f in report.failed} for name, report in hashed.items()}
    queries = QueryImages.read(
        [(i.name, folders[i.name], [p for p in i.parts if p not in failed[i.name]]) for i in against]
    )
    lost = {f.shard for f in searched.failed}
    parts = [p for p in training.parts if p not in lost]
    matches, pairs = _search(queries, parts, folder, rules, progress)
    report = _summary(matches, pairs, searched, hashed, queries.distinct(), rules)
    if job.within:
        copies = _copies(parts, folder, rules, progress)
        report = report.model_copy(update={"within": len(copies)})
        matches = pa.concat_tables([matches, copies])
    footer = {"stage": STAGE, "version": str(HASH_VERSION), "rules": digest_json(vars(rules))}
    write_table(join(out, "matches.parquet"), matches, MATCHES, footer)
    write_json(join(out, "report.json"), report.model_dump(mode="json"))
    write_atomic(join(out, "report.md"), markdown(report, matches))
    from pipeline.report.pairs import write_pairs

    write_pairs(matches, training, against, out, limit=job.pictures, report=report)
    dropped = None
    if job.drop:
        dropped = drop_samples.run(
            [training.shards[p] for p in parts], join(out, "shards"), without=ExclusionList.of_table(matches),
            reason=REASON, failed=lost, options=job,
        )  # fmt: skip
    return report, dropped


def _search(
    queries: QueryImages, parts: Sequence[str], folder: str, rules: MatchRules, progress: Progress
) -> tuple[pa.Table, Tally]:
    """Return the matches by shard, row and evaluation image, and a tally of the candidates."""
    matched: list[tuple[int, Pairs]] = []
    pairs = Tally()
    progress.begin("search", len(parts) * max(1, -(-len(queries.words) // BLOCK)))
    for block in blocks(queries, rules):
        for number, part in enumerate(parts):
            hashes = read_table(join(folder, f"{part}.parquet"), WORD_COLUMNS)
            some = block.search(words_of(hashes))
            pairs.keep(len(some.row))
            pairs.drop("other_details", some.candidates - len(some.row))
            if len(some.row):
                matched.append((number, some))
            progress.advance(1, "shards")
    progress.end(StageReport(stage="search"))
    return _table(matched, queries, parts, folder), pairs


def _copies(parts: Sequence[str], folder: str, rules: MatchRules, progress: Progress) -> pa.Table:
    """Return each record that is a near-duplicate of an earlier one that stays, with the first such."""
    own = QueryImages.read([(WITHIN, folder, parts)])
    first = np.concatenate([[0], np.cumsum(np.bincount(own.part, minlength=len(parts)))])
    found: list[tuple[int, Pairs]] = []
    progress.begin("search", len(parts) * max(1, -(-len(own.words) // BLOCK)))
    for block in blocks(own, rules):
        for number in range(len(parts)):
            some = block.search(own.words[first[number] : first[number + 1]])
            found.append((number, some.only(some.wanted < some.row + first[number])))
            progress.advance(1, "shards")
    progress.end(StageReport(stage="search"))
    stays = np.ones(len(own.words), bool)
    chosen: list[tuple[int, Pairs]] = []
    for number in range(len(parts)):
        pairs = Pairs.joined([some for n, some in found if n == number])
        kept = np.zeros(len(pairs.row), bool)
        for i, (row, earlier) in enumerate(
            zip((pairs.row + first[number]).tolist(), pairs.wanted.tolist(), strict=True)
        ):
            if stays[row] and stays[earlier]:
                stays[row], kept[i] = False, True
        chosen.append((number, pairs.only(kept)))
    return _table(chosen, own, parts, folder)


def _table(matched: Sequence[tuple[int, Pairs]], queries: QueryImages, parts: Sequence[str], folder: str) -> pa.Table:
    rows: list[tuple[tuple[int, int, int], dict[str, Any]]] = []
    for number in sorted({number for number, _ in matched}):
        table = read_table(join(folder, f"{parts[number]}.parquet"), ["key", "image"])
        keys, images = table["key"], table["image"].to_numpy()
        for some in (pairs for n, pairs in matched if n == number):
            set_keys = queries.keys.take(pa.array(some.wanted)).to_pylist()
            own_keys = keys.take(pa.array(some.row)).to_pylist()
            for i, (row, other) in enumerate(zip(some.row.tolist(), some.wanted.tolist(), strict=True)):
                name, part = queries.parts[int(queries.part[other])]
                values = {
                    "shard": parts[number], "key": own_keys[i], "set": name, "set_part": part, "set_key": set_keys[i],
                    "distance": int(some.distance[i]), "details": int(some.details[i]),
                    "mirrored": bool(some.mirrored[i]), "image": int(images[row]),
                    "set_image": int(queries.images[other]),
                }  # fmt: skip
                rows.append(((number, row, other), values))
    return pa.Table.from_pylist([values for _, values in sorted(rows, key=itemgetter(0))], schema=MATCHES)


def _summary(
    matches: pa.Table,
    pairs: Tally,
    searched: StageReport,
    hashed: dict[str, StageReport],
    distinct: dict[str, int],
    rules: MatchRules,
) -> DedupReport:
    sets = {}
    for name, report in hashed.items():
        of_set = matches.filter(pc.equal(matches["set"], name))
        sets[name] = SetMatches(
            records=report.tallies.get("samples", Tally()),
            images=distinct.get(name, 0),
            matched=len(of_set["set_image"].unique()),
            training_images=len(of_set["image"].unique()),
            **_resized(report),
            failed=report.failed,
        )
    details = np.bincount(matches["details"].to_numpy() // 8, minlength=1)
    return DedupReport(
        **vars(rules),
        records=searched.tallies.get("samples", Tally()),
        matched=len(matches.group_by(["shard", "key"]).aggregate([])),
        matched_images=len(matches["image"].unique()),
        pairs=pairs,
        by_details={f"{8 * i}-{8 * i + 7}": int(n) for i, n in enumerate(details) if n},
        **_resized(searched),
        sets=sets,
        failed=searched.failed,
    )


def _resized(report: StageReport) -> dict[str, int]:
    return {
        "padded": int(report.numbers.get(hash_images.PADDED, 0)),
        "cropped": int(report.numbers.get(hash_images.CROPPED, 0)),
        "squares": int(report.numbers.get(hash_images.SQUARE, 0)),
    }
