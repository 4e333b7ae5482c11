"""parse-phrases: noun phrases of a crawl's captions, with the parser's own character offsets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import pyarrow as pa

from pipeline.config import ParsePhrasesConfig
from pipeline.data.crawl import caption_of, image_of
from pipeline.data.records import PHRASES, STORE_VERSION
from pipeline.execution.reports import ShardReport, StageReport, Tally
from pipeline.execution.run import run_workers
from pipeline.execution.worker import EachShard, ShardJob, WorkQueue
from pipeline.io.hashing import digest_file, fingerprint
from pipeline.io.paths import join, stem
from pipeline.io.shard_patterns import expand_shards
from pipeline.io.tables import write_table
from pipeline.io.tars import TarProblems, read_tar
from pipeline.phrases.captions import skip_reason
from pipeline.phrases.find import RULES, find_phrases
from pipeline.phrases.parsed import CaptionPhraseSpans
from pipeline.phrases.parser import model_version
from pipeline.stages.jobs import ParsePhrases

STAGE = "parse-phrases"
TELL_EVERY = 500
"""Captions between two words of progress."""


def run(job: ParsePhrases) -> StageReport:
    """Write ``out/<shard>.parquet`` (records.PHRASES) for every crawl shard, one row a phrase, in the shard's order.

    ``caption[start:end] == phrase`` holds for every row. A sample is kept if it has an image and at least one phrase.

    Raises:
        InputError: a local shard is missing, or the spaCy model is not installed.
        RunError: more than ``max_failed`` shards failed.
    """
    fingerprint_of = partial(_fingerprint_of, config=job.settings, parser=model_version(job.settings))
    jobs = [ShardJob(shard, stem(shard)) for shard in expand_shards(job.shards)]
    workers = [ParseShards(job.settings, job.out)] * max(1, min(job.workers, len(jobs)))
    return run_workers(STAGE, jobs, job.out, workers, job, fingerprint_of=fingerprint_of)


def _fingerprint_of(job: ShardJob, *, config: ParsePhrasesConfig, parser: str) -> str:
    inputs = {"crawl": digest_file(job.path)}
    return fingerprint(STAGE, version=STORE_VERSION, config=config, inputs=inputs, parser=parser, rules=RULES)


@dataclass(frozen=True)
class ParseShards:
    """Parses one shard after the other, and tells of captions while it does."""

    config: ParsePhrasesConfig
    out: str

    def __call__(self, queue: WorkQueue) -> None:
        EachShard(partial(self.shard, queue=queue))(queue)

    def shard(self, job: ShardJob, *, queue: WorkQueue) -> ShardReport:
        """Write the phrases of one shard."""
        problems, samples, phrases = TarProblems(), Tally(), Tally()
        captions, cut = self._captions(job.path, problems, samples)
        parsed = self._parsed(captions, queue)
        rows: dict[str, list[str | int]] = {name: [] for name in PHRASES.names}
        keys, texts, words, roots, starts, ends = rows.values()
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
                keys.append(key)
                texts.append(caption)
                words.append(caption[start:end])
                roots.append(root)
                starts.append(start)
                ends.append(end)
        name = f"{job.name}.parquet"
        footer = {"stage": STAGE, "fingerprint": job.fingerprint, "version": str(STORE_VERSION)}
        output = write_table(join(self.out, name), pa.table(rows, schema=PHRASES), PHRASES, footer)
        numbers = {"distinct_captions": float(len(parsed)), "captions_cut": float(cut)}
        tallies = {"samples": samples, "phrases": phrases}
        return job.report(STAGE, {name: output}, tallies, numbers=numbers, problems=problems)

    def _captions(self, shard: str, problems: TarProblems, samples: Tally) -> tuple[list[tuple[str, str]], int]:
        """(key, caption) of the samples worth parsing, the others counted; and how many captions were cut."""
        found: list[tuple[str, str]] = []
        cut, longest = 0, self.config.max_caption_chars
        for sample in read_tar(shard, problems):
            caption, reason = caption_of(sample)
            if caption is None:
                samples.drop(reason or "no_caption")
            elif image_of(sample) is None:
                samples.drop("no_image")
            elif self.config.drop_boilerplate and (why := skip_reason(caption)):
                samples.drop(why)
            elif not caption.strip():
                samples.drop("empty_caption")
            else:
                cut += len(caption) > longest
                found.append((sample.key, caption[:longest]))
        return found, cut

    def _parsed(self, captions: Sequence[tuple[str, str]], queue: WorkQueue) -> dict[str, CaptionPhraseSpans]:
        """What each distinct caption holds: the same text is parsed once a shard."""
        distinct = list(dict.fromkeys(caption for _, caption in captions))
        parsed: dict[str, CaptionPhraseSpans] = {}
        for caption, found in zip(distinct, find_phrases(distinct, self.config), strict=True):
            parsed[caption] = found
            if len(parsed) % TELL_EVERY == 0:
                queue.advance(TELL_EVERY, "captions")
        if rest := len(parsed) % TELL_EVERY:
            queue.advance(rest, "captions")
        return parsed
