"""parse-phrases: noun phrases of a crawl's captions, with the parser's own character offsets."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pyarrow as pa

from pipeline.config import ParsePhrasesConfig
from pipeline.io.hashing import digest_file, fingerprint
from pipeline.io.paths import join, stem
from pipeline.io.tables import write_table
from pipeline.io.tars import TarProblems, read_tar
from pipeline.phrases.captions import useless
from pipeline.phrases.nouns import Parsed, model_version, parse
from pipeline.progress import Progress
from pipeline.records import PHRASES, STORE_VERSION
from pipeline.stages.base import ShardJob, run_shards
from pipeline.stages.crawl import caption_of, image_of
from pipeline.stats import ShardReport, StageReport, Tally

STAGE = "parse-phrases"


def run(
    config: ParsePhrasesConfig,
    shards: Sequence[str],
    out: str | Path,
    *,
    progress: Progress | None = None,
    workers: int = 1,
    max_failed: int = 0,
) -> StageReport:
    """``out/<shard>.parquet`` (records.PHRASES) for every crawl shard, one row a phrase, in the shard's order.

    ``caption[start:end] == phrase`` holds for every row. A sample is kept if it has an image and at least one phrase.
    """
    parser = model_version(config)
    jobs = [
        ShardJob(
            shard,
            stem(shard),
            fingerprint(
                STAGE,
                version=STORE_VERSION,
                config=config,
                inputs={"crawl": digest_file(shard)},
                parser=parser,
            ),
        )
        for shard in shards
    ]
    work = partial(_parse_shard, config=config, out=str(out))
    return run_shards(STAGE, jobs, out, work, progress=progress, workers=workers, max_failed=max_failed)


def _parse_shard(job: ShardJob, *, config: ParsePhrasesConfig, out: str) -> ShardReport:
    problems, samples, phrases = TarProblems(), Tally(), Tally()
    captions: list[tuple[str, str]] = []
    cut = 0
    for sample in read_tar(job.path, problems):
        caption, reason = caption_of(sample)
        if caption is None:
            samples.drop(reason or "no_caption")
        elif image_of(sample) is None:
            samples.drop("no_image")
        elif config.drop_boilerplate and (why := useless(caption)):
            samples.drop(why)
        elif not caption.strip():
            samples.drop("empty_caption")
        else:
            cut += len(caption) > config.max_caption_chars
            captions.append((sample.key, caption[: config.max_caption_chars]))
    distinct = list(dict.fromkeys(caption for _, caption in captions))
    parsed: dict[str, Parsed] = dict(zip(distinct, parse(distinct, config), strict=True))
    rows: dict[str, list[str | int]] = {name: [] for name in PHRASES.names}
    for key, caption in captions:
        found = parsed[caption]
        phrases.keep(len(found.phrases))
        for why, n in found.dropped.items():
            phrases.drop(why, n)
        if not found.phrases:
            samples.drop("no_phrase")
            continue
        samples.keep()
        for start, end, root in found.phrases:
            values: tuple[str | int, ...] = (key, caption, caption[start:end], root, start, end)
            for name, value in zip(PHRASES.names, values, strict=True):
                rows[name].append(value)
    name = f"{job.name}.parquet"
    output = write_table(
        join(out, name),
        pa.table(rows, schema=PHRASES),
        PHRASES,
        {"stage": STAGE, "fingerprint": job.fingerprint, "version": str(STORE_VERSION)},
    )
    numbers = {"distinct_captions": float(len(distinct)), "captions_cut": float(cut)}
    tallies = {"samples": samples, "phrases": phrases}
    return job.report(STAGE, {name: output}, tallies, numbers=numbers, problems=problems)
