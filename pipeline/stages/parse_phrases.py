"""parse-phrases: extract the noun phrases of a crawl's captions, with character offsets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import partial

import pyarrow as pa

from pipeline.config import ParsePhrasesConfig
from pipeline.data.caption_files import CaptionFile, names_of, open_captions
from pipeline.data.crawl import CAPTION, IMAGE, UnreadMembers, caption_of, image_of
from pipeline.data.images import IMAGE_EXTENSIONS
from pipeline.data.records import NUMBERED_PHRASES, PHRASES, STORE_VERSION
from pipeline.errors import InputError
from pipeline.execution.reports import ShardReport, StageReport, Tally
from pipeline.execution.run import run_shards
from pipeline.execution.worker import ShardJob, WorkQueue
from pipeline.io.hashing import digest_file, fingerprint
from pipeline.io.paths import join, stem
from pipeline.io.samples import read_samples, repeated_names
from pipeline.io.shard_patterns import expand_crawl
from pipeline.io.tables import write_table
from pipeline.io.tars import TarProblems, TarSample
from pipeline.phrases.cleaning import clean
from pipeline.phrases.find import caption_skip_reason, find_phrases
from pipeline.phrases.language import check_language
from pipeline.phrases.parsed import CaptionPhraseSpans
from pipeline.phrases.parser import model_version
from pipeline.stages.jobs import ParsePhrases

STAGE = "parse-phrases"
RULES_VERSION = "3.1"
"""Version of the captions and phrases of ``rules=3``, in fingerprints; to be raised when they change."""
UNLISTED = "unlisted"
"""Reason of a sample that a file of captions does not have: it is no fault of the shard."""
Text = tuple[TarSample, str | None, str | None]
"""A sample with its caption, or with the reason that it has none."""
PROGRESS_EVERY = 500
"""Captions between reports of progress."""


def run(job: ParsePhrases) -> StageReport:
    """Write ``out/<shard>.parquet`` (records.NUMBERED_PHRASES) for every crawl shard, a row per phrase.

    With ``rules=2`` it is records.PHRASES. ``caption[start:end] == phrase`` holds for every row. A
    sample is kept if it has an image and at least one phrase.

    Raises:
        InputError: a local shard is missing, the spaCy model is not installed, or the file of captions
            cannot be read.
        RunError: more than ``max_failed`` shards failed (one fails if more than
            ``max_unread_share`` of its samples have no readable caption or image, or none of its keys is
            in the file of captions).
    """
    if job.captions is None and (job.caption_key or job.caption_column):
        raise InputError("--caption-key and --caption-column are of --captions FILE; found no such file")
    captions = None if job.captions is None else open_captions(job.captions, job.caption_key, job.caption_column)
    if job.settings.language and job.settings.rules > 2:
        check_language(job.settings.language)
    parser = model_version(job.settings)
    fingerprint_of = partial(_fingerprint_of, config=job.settings, parser=parser, captions=captions)
    jobs = [ShardJob(shard, stem(shard)) for shard in expand_crawl(job.shards)]
    work = partial(_parse_shard, config=job.settings, out=job.out, captions=captions)
    return run_shards(STAGE, jobs, job.out, work, job, fingerprint_of=fingerprint_of, advances=True)


def _fingerprint_of(
    job: ShardJob, *, config: ParsePhrasesConfig, parser: str, captions: CaptionFile | None = None
) -> str:
    inputs = {"crawl": digest_file(job.path)}
    settings, rules = config.fingerprinted(), "2" if config.rules == 2 else RULES_VERSION
    extra = {"parser": parser, "rules": rules}
    if captions is not None:
        inputs["captions"] = digest_file(captions.path)
        extra["captions"] = captions.found_by(job.path)
    return fingerprint(STAGE, version=STORE_VERSION, config=settings, inputs=inputs, **extra)


def _parse_shard(
    job: ShardJob, *, queue: WorkQueue, config: ParsePhrasesConfig, out: str, captions: CaptionFile | None
) -> ShardReport:
    problems, samples, phrases = TarProblems(), Tally(), Tally()
    members = UnreadMembers(job.path, f"{IMAGE} and {CAPTION}")
    texts = (_shard_texts if captions is None else partial(_file_texts, captions=captions))(job.path, problems)
    parsable, cut, unlisted = _captions(texts, config, samples, members)
    members.check(len(parsable) + unlisted, samples, problems, config.max_unread_share)
    samples.drop("no_caption", unlisted)
    parsed = _parsed(parsable, config, queue)
    schema = PHRASES if config.rules == 2 else NUMBERED_PHRASES
    rows: list[tuple[str | int | None, ...]] = []
    for key, caption in parsable:
        spans = parsed[caption]
        phrases.keep(len(spans.phrases))
        for reason, n in spans.dropped.items():
            phrases.drop(reason, n)
        if not spans.phrases:
            samples.drop("no_phrase")
            continue
        samples.keep()
        for start, end, root in spans.phrases:
            number = spans.numbers.get((start, end))
            rows.append((key, caption, caption[start:end], root, start, end, number))
    foreign = samples.dropped.get("not_english", 0) + samples.dropped.get("not_in_language", 0)
    if foreign * 2 > samples.seen:
        problems.notes.append(
            f"{foreign} of {samples.seen} captions are not in the language {config.language!r}; for those of another "
            "set language and spacy_model, or language=null to keep all"
        )
    name = f"{job.name}.parquet"
    footer = {"stage": STAGE, "fingerprint": job.fingerprint, "version": str(STORE_VERSION)}
    columns = dict(zip(schema.names, zip(*rows, strict=True), strict=False)) or dict.fromkeys(schema.names, ())
    output = write_table(join(out, name), pa.table(columns, schema=schema), schema, footer)
    numbers = {"distinct_captions": float(len(parsed)), "captions_cut": float(cut), **members.numbers()}
    if config.rules > 2:
        kinds = Counter(kind for _, caption in parsable for kind in clean(caption).kinds)
        numbers |= {f"captions_with_{kind}": float(n) for kind, n in sorted(kinds.items())}
    tallies = {"samples": samples, "phrases": phrases}
    return job.report(STAGE, {name: output}, tallies, numbers=numbers, problems=problems)


def _shard_texts(shard: str, problems: TarProblems) -> Iterator[Text]:
    """The shard's own captions."""
    for sample in read_samples(shard, problems):
        yield sample, *caption_of(sample)


def _file_texts(shard: str, problems: TarProblems, *, captions: CaptionFile) -> Iterator[Text]:
    """Captions of the file; without their images' bytes, as the file is searched once a shard.

    Raises:
        InputError: the shard has images, and the file a caption of none.
    """
    repeated, samples = repeated_names(shard), list[tuple[TarSample, list[str]]]()
    for sample in read_samples(shard, problems):
        image = image_of(sample)
        names = [] if image is None else names_of(sample, image[0], repeated)
        files = {extension: b"" if extension in IMAGE_EXTENSIONS else data for extension, data in sample.files.items()}
        samples.append((TarSample(sample.key, files), names))
    found = captions.find(name for _, names in samples for name in names)
    named = [names for _, names in samples if names]
    if named and not found:
        raise InputError(
            f"{shard}: found no caption of its {len(named):,} images in {captions.path}, whose column {captions.key} "
            f"has {captions.first()!r}; want keys such as {named[0][0]!r} (--caption-key names another column)"
        )
    for sample, names in samples:
        caption = next((found[name] for name in names if name in found), None)
        yield sample, caption, UNLISTED if names and caption is None else None


def _captions(
    texts: Iterable[Text], config: ParsePhrasesConfig, samples: Tally, members: UnreadMembers
) -> tuple[list[tuple[str, str]], int, int]:
    """Return (key, caption) of the samples to parse, how many captions were cut, and how many samples are UNLISTED."""
    captions: list[tuple[str, str]] = []
    cut, unlisted, longest = 0, 0, config.max_caption_chars
    for sample, caption, reason in texts:
        if members.see(sample, samples):
            continue
        if reason == UNLISTED:
            unlisted += 1
            continue
        if (caption is not None or reason is None) and image_of(sample) is None:
            reason = "no_image"
        elif caption is not None and not caption.strip():
            reason = "empty_caption"
        if caption is None or reason is not None:
            samples.drop(reason or "no_caption")
            members.lose(sample)
        elif reason := caption_skip_reason(caption if config.rules == 2 else caption[:longest], config):
            samples.drop(reason)
        else:
            cut += len(caption) > longest
            captions.append((sample.key, caption[:longest]))
    return captions, cut, unlisted


def _parsed(
    captions: Sequence[tuple[str, str]], config: ParsePhrasesConfig, queue: WorkQueue
) -> dict[str, CaptionPhraseSpans]:
    """Parse each distinct caption once."""
    distinct = list(dict.fromkeys(caption for _, caption in captions))
    parsed: dict[str, CaptionPhraseSpans] = {}
    for caption, spans in zip(distinct, find_phrases(distinct, config), strict=True):
        parsed[caption] = spans
        if len(parsed) % PROGRESS_EVERY == 0:
            queue.advance(PROGRESS_EVERY, "captions")
    if rest := len(parsed) % PROGRESS_EVERY:
        queue.advance(rest, "captions")
    return parsed
