"""What an export reads: training shards, or a label store with the crawl that it labels. One shard
at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Protocol

from pydantic import ValidationError

from pipeline.config import BuildShardsConfig
from pipeline.data.crawl import image_of
from pipeline.data.dataset_cards import read_cards
from pipeline.data.image_links import LinkReader
from pipeline.data.images import IMAGE_EXTENSIONS
from pipeline.data.records import DatasetCard, GroundingRecord, ImageLink
from pipeline.errors import InputError
from pipeline.execution.reports import ShardReport, Tally
from pipeline.execution.worker import MAX_NOTES
from pipeline.io.files import file_size, listing, read_bytes, require_files
from pipeline.io.hashing import digest_file
from pipeline.io.paths import is_url, join, parent, stem
from pipeline.io.shard_patterns import expand_shards
from pipeline.io.tables import read_table
from pipeline.io.tars import TarProblems, TarSample, read_tar
from pipeline.labelling.label_records import ShardLabels, card_of, copied_image
from pipeline.writers.registry import DATASET

WANTED = "want training shards (*.tar of ingest or build-shards) or labels (*.parquet of filter-boxes)"


@dataclass
class Found:
    """What reading came upon, beside the records: lost ones by reason, and the first few problems
    in words.
    """

    samples: Tally = field(default_factory=Tally)
    regions: Tally = field(default_factory=Tally)
    problems: TarProblems = field(default_factory=TarProblems)

    def lose(self, tallies: tuple[Tally, Tally]) -> None:
        """Add what another count has dropped; what it kept is counted where it is written."""
        for mine, theirs in zip((self.samples, self.regions), tallies, strict=True):
            for reason, n in theirs.dropped.items():
                mine.drop(reason, n)

    def take(self, shard: str, problems: TarProblems) -> None:
        """Add what was wrong with a shard; the first few problems of all are kept in words."""
        for reason, n in problems.counts.items():
            self.problems.counts[f"shard_{reason}"] = self.problems.counts.get(f"shard_{reason}", 0) + n
        room = MAX_NOTES - len(self.problems.notes)
        self.problems.notes += [f"{shard}: {note}" for note in problems.notes[:room]]


@dataclass(frozen=True)
class Sample:
    """A record, the key and extension of its image in the shard, and how to get its bytes, if they
    are to be had.
    """

    record: GroundingRecord
    key: str
    extension: str
    image: Callable[[], bytes] | None


class Source(Protocol):
    """Shards of records. ``names``: of each, in order. ``images``: whether it can give images."""

    names: list[str]
    images: bool

    def digests(self) -> dict[str, str]:
        """What identifies the content of each input."""
        ...

    def cards(self) -> dict[str, DatasetCard]:
        """What is known of the sets, by name."""
        ...

    def read(self, number: int, found: Found) -> Iterator[Sample]:
        """The records of a shard; an image's bytes are in memory as long as its sample is."""
        ...


def find_source(
    dirs: Sequence[str], *, phrases: str | None, crawl: Sequence[str], dataset: str | None, images: bool | None
) -> Source:
    """What the folders, patterns or files hold.

    Args:
        phrases, crawl: of a label store; its phrases are looked for beside it. images: as asked
            for; None: where there are any.

    Raises:
        InputError: nothing there, not both kinds at a time, or options that are for the other kind.
    """
    kinds = {_kind(path) for path in dirs}
    if len(kinds) > 1:
        raise InputError(f"{', '.join(dirs)}: training shards and a label store; export them one after the other")
    if kinds == {".tar"}:
        if dataset is not None:
            raise InputError("--dataset names the set of a label store; training shards know theirs themselves")
        if phrases or crawl:
            raise InputError(
                "--phrases and --shards go with a label store; training shards know their images themselves"
            )
        return TrainingShards(expand_shards(dirs))
    if images and not crawl:
        raise InputError("--images copy of a label store wants --shards, the crawl that holds the images")
    return LabelStore(expand_shards(dirs, suffix=".parquet"), phrases, list(crawl), dataset or DATASET)


def _kind(path: str) -> str:
    for suffix in (".tar", ".parquet"):
        if path.rstrip("/").endswith(suffix):
            return suffix
    if any(c in path.rsplit("/", 1)[-1] for c in "*?[{"):
        return ".tar"
    if not is_url(path) and not Path(path).exists():
        raise InputError(f"{path}: no such folder; {WANTED}")
    if not is_url(path) and Path(path).is_file():
        raise InputError(f"{path}: {WANTED}; found a file called otherwise")
    for suffix in (".tar", ".parquet"):
        if any(not name.rsplit("/", 1)[-1].startswith(".") for name in listing(path, suffix)):
            return suffix
    raise InputError(f"{path}: {WANTED}; found neither in it")


class TrainingShards:
    """The shards that ingest and build-shards write, and others of the same record; images in them
    or linked.
    """

    images = True

    def __init__(self, paths: list[str]) -> None:
        self._paths, self._links = paths, LinkReader()
        self.names = [stem(path) for path in paths]

    def digests(self) -> dict[str, str]:
        """By the reports beside the shards, where they fit: digesting terabytes would cost as much
        as exporting them.
        """
        known: dict[str, tuple[int, str]] = {}
        for folder in sorted({parent(path) for path in self._paths if not is_url(path)}):
            for path in listing(folder, ".report.json"):
                try:
                    report = ShardReport.model_validate_json(read_bytes(path) or b"")
                except ValidationError:
                    continue
                known |= {join(folder, name): (file.bytes, file.sha256) for name, file in report.outputs.items()}
        found = {}
        for name, path in zip(self.names, self._paths, strict=True):
            size, digest = known.get(join(parent(path), path.rsplit("/", 1)[-1]), (-1, ""))
            found[name] = digest if digest and file_size(path) == size else digest_file(path)
        return found

    def cards(self) -> dict[str, DatasetCard]:
        """The ``*.dataset.json`` beside the shards."""
        return {card.name: card for _, card in read_cards(self._paths)}

    def read(self, number: int, found: Found) -> Iterator[Sample]:
        """Records that are none are counted as ``no_record``, ``bad_record``, ``bad_link`` or
        ``no_image``.

        Raises:
            InputError: no tar archive, one that is cut off or damaged, or one without a single
                record.
        """
        path, good, problems = self._paths[number], 0, TarProblems()
        for sample in read_tar(path, problems):
            made = self._sample(path, sample, found, problems)
            if made is not None:
                good += 1
                yield made
        for reason in ("truncated_tar", "bad_tar_header"):
            if reason in problems.counts:
                raise InputError(f"{path}: {reason}: {next(n for n in problems.notes if 'after' in n)}; make it anew")
        if not good and problems.notes:
            raise InputError(
                f"{path}: no record in it ({problems.notes[0]}); {WANTED}. A crawl's shards go with their labels: "
                "export-labels LABELS --phrases PHRASES --shards CRAWL"
            )
        found.take(self.names[number], problems)

    def _sample(self, path: str, sample: TarSample, found: Found, problems: TarProblems) -> Sample | None:
        reason, words = "", ""
        if "json" not in sample.files:
            reason, words = "no_record", f"it has {sorted(sample.files)}, and no json"
        else:
            try:
                record = GroundingRecord.model_validate_json(sample.files["json"])
                place = image_of(sample)
                if place is not None:
                    return Sample(record, sample.key, place[0], partial(_same, place[1]))
                if "link" in sample.files:
                    link = ImageLink.model_validate_json(sample.files["link"])
                    if link.extension not in IMAGE_EXTENSIONS:
                        raise ValueError(f"extension {link.extension!r}")
                    return Sample(record, sample.key, link.extension, partial(self._links.image, path, link))
                reason, words = "no_image", f"it has {sorted(sample.files)}, and neither an image nor a link to one"
            except ValidationError as error:
                first = error.errors()[0]
                reason, words = "bad_record", f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
            except ValueError as error:
                reason, words = "bad_link", str(error)
        found.samples.drop(reason)
        if len(problems.notes) < MAX_NOTES:
            problems.notes.append(f"{sample.key}: {words}")
        return None


def _same(data: bytes) -> bytes:
    return data


class LabelStore:
    """What filter-boxes wrote, as build-shards would make records of it; with the crawl, its images
    too.
    """

    def __init__(self, labels: list[str], phrases: str | None, crawl: list[str], dataset: str) -> None:
        self._labels, self._dataset = labels, dataset
        self.names = [stem(path) for path in labels]
        folder = phrases or self._look_for_phrases(labels[0])
        self._phrases = [join(folder, f"{name}.parquet") for name in self.names]
        self.images = bool(crawl)
        by_stem = {stem(path): path for path in expand_shards(crawl)} if crawl else {}
        for name, path in zip(self.names, labels, strict=True):
            if crawl and name not in by_stem:
                raise InputError(f"{path}: no shard called {name} among {', '.join(crawl)}")
        self._crawl = [by_stem[name] for name in self.names] if crawl else []
        require_files([*labels, *self._phrases])
        try:
            read_table(labels[0], ["key", "status"])
        except InputError as error:
            raise InputError(f"{error}; want the folder that filter-boxes wrote") from None

    @staticmethod
    def _look_for_phrases(label_file: str) -> str:
        """``phrases`` beside the labels' folder or a step further up, as a run lays them."""
        above = parent(parent(label_file))
        name = f"{stem(label_file)}.parquet"
        for folder in (join(above, "phrases"), join(parent(above), "phrases")):
            if file_size(join(folder, name)) is not None:
                return folder
        raise InputError(
            f"{label_file}: no phrases found at {join(above, 'phrases')}; want --phrases FOLDER of parse-phrases"
        )

    def digests(self) -> dict[str, str]:
        """Of a crawl shard its size stands for it, as in the links of build-shards."""
        found = {}
        for number, name in enumerate(self.names):
            found[f"{name} labels"] = digest_file(self._labels[number])
            found[f"{name} phrases"] = digest_file(self._phrases[number])
            if self._crawl:
                found[f"{name} crawl"] = str(file_size(self._crawl[number]))
        return found

    def cards(self) -> dict[str, DatasetCard]:
        """One, of the set that the labels become."""
        return {self._dataset: card_of(self._dataset)}

    def read(self, number: int, found: Found) -> Iterator[Sample]:
        """Images that the crawl has lost since are counted as build-shards counts them.

        Raises:
            InputError: a file is missing or is none of ours, or phrases and labels are of two runs.
        """
        config = BuildShardsConfig()
        store = ShardLabels.read(self._phrases[number], self._labels[number], self._dataset, config)
        problems = TarProblems()
        if self._crawl:
            for key, record, files in store.joined(self._crawl[number], copied_image, problems):
                ((extension, data),) = files.items()
                yield Sample(record, key, extension, partial(_same, data))
        else:
            for key, record in store.alone():
                yield Sample(record, key, "jpg", None)
        found.lose((store.samples, store.regions))
        found.take(self.names[number], problems)
