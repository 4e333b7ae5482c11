"""Inputs of an export, read shard by shard: training shards, or a label store with its crawl."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from pydantic import ValidationError

from pipeline.config import BuildShardsConfig
from pipeline.data.crawl import image_of
from pipeline.data.dataset_cards import labelled_by, read_cards
from pipeline.data.image_links import LinkReader
from pipeline.data.images import IMAGE_EXTENSIONS
from pipeline.data.records import DatasetCard, GroundingRecord, ImageLink
from pipeline.data.verdicts import Verdicts
from pipeline.errors import InputError
from pipeline.execution.reports import ShardReport, Tally
from pipeline.execution.worker import MAX_NOTES
from pipeline.io.files import file_size, listing, read_bytes, require_files
from pipeline.io.hashing import digest_file
from pipeline.io.paths import is_url, join, parent, stem
from pipeline.io.shard_patterns import expand_crawl, expand_shards, is_shard, shards_in
from pipeline.io.tars import TarProblems, TarSample, read_tar
from pipeline.io.virtual_shards import virtual_shard
from pipeline.labelling.label_records import ShardLabels, copied_image, label_names, pseudo_label_card
from pipeline.writers.registry import DATASET

WANTED = "want training shards (*.tar of ingest or build-shards) or labels (*.parquet of filter-boxes)"


@dataclass
class ReadLosses:
    """Records and regions lost in reading, by reason, messages of the first problems, and effects of verdicts."""

    samples: Tally = field(default_factory=Tally)
    regions: Tally = field(default_factory=Tally)
    problems: TarProblems = field(default_factory=TarProblems)
    decided: Counter[str] = field(default_factory=Counter)

    def add_problems(self, shard: str, problems: TarProblems) -> None:
        """Add the problems of a shard."""
        for reason, n in problems.counts.items():
            self.problems.counts[f"shard_{reason}"] = self.problems.counts.get(f"shard_{reason}", 0) + n
        room = MAX_NOTES - len(self.problems.notes)
        self.problems.notes += [f"{shard}: {note}" for note in problems.notes[:room]]


@dataclass(frozen=True)
class Sample:
    """A record, the key and extension of its image in the shard, and a function that reads the
    image, if available.
    """

    record: GroundingRecord
    key: str
    extension: str
    image: Callable[[], bytes] | None


def find_source(
    dirs: Sequence[str], *, phrases: str | None, crawl: Sequence[str], dataset: str | None, images: bool | None,
    verdicts: str | None = None,
) -> Source:  # fmt: skip
    """Source of the records in the folders, patterns or files ``dirs``.

    Args:
        phrases: folder of a label store's phrases; by default searched beside it.
        crawl: shards labelled by a label store.
        dataset: name of a label store's set.
        verdicts: folder of verdicts on a label store's regions.
        images: whether images are required; None: if available.

    Raises:
        InputError: no input, both kinds of input, or options of the other kind.
    """
    kinds = {_kind(path) for path in dirs}
    if len(kinds) > 1:
        raise InputError(f"{', '.join(dirs)}: training shards and a label store; export them one after the other")
    if kinds == {".tar"}:
        if dataset is not None:
            raise InputError("--dataset is for a label store; the records of training shards state their set")
        if phrases or crawl or verdicts:
            raise InputError(
                "--phrases, --shards and --verdicts are for a label store; training shards have or link their images, "
                "and build-shards --verdicts applies verdicts"
            )
        return TrainingShards(expand_shards(dirs))
    if images and not crawl:
        raise InputError("--images copy of a label store wants --shards, the crawl that has the images")
    return LabelStore(expand_shards(dirs, suffix=".parquet"), phrases, list(crawl), dataset or DATASET, verdicts)


def _kind(path: str) -> str:
    folder = not is_url(path) and Path(path).is_dir()
    for suffix in (".tar", ".parquet"):
        if not folder and is_shard(path.rsplit("/", 1)[-1], suffix):
            return suffix
    if not is_url(path) and Path(path).is_file():
        raise InputError(f"{path}: {WANTED}; found a file with another suffix")
    if not folder and any(c in path.rsplit("/", 1)[-1] for c in "*?[{"):
        return ".tar"
    if not folder and not is_url(path):
        raise InputError(f"{path}: no such folder; {WANTED}")
    for suffix in (".tar", ".parquet"):
        if shards_in(path, suffix):
            return suffix
    raise InputError(f"{path}: {WANTED}; found neither in it")


class TrainingShards:
    """Shards of ingest or build-shards, with images or links to them. names: of the shards."""

    images = True
    """Whether images are available."""

    def __init__(self, paths: list[str]) -> None:
        self._paths, self._links = paths, LinkReader()
        self.names = [stem(path) for path in paths]

    def digests(self) -> dict[str, str]:
        """Digest of each shard by name: as stated in the reports beside the shards if the sizes match,
        as digesting terabytes would take as long as exporting them; otherwise computed.
        """
        reported: dict[str, tuple[int, str]] = {}
        for folder in sorted({parent(path) for path in self._paths if not is_url(path)}):
            for path in listing(folder, ".report.json"):
                try:
                    report = ShardReport.model_validate_json(read_bytes(path) or b"")
                except ValidationError:
                    continue
                reported |= {join(folder, name): (file.bytes, file.sha256) for name, file in report.outputs.items()}
        digests = {}
        for name, path in zip(self.names, self._paths, strict=True):
            size, digest = reported.get(join(parent(path), path.rsplit("/", 1)[-1]), (-1, ""))
            digests[name] = digest if digest and file_size(path) == size else digest_file(path)
        return digests

    def cards(self) -> dict[str, DatasetCard]:
        """Cards in the shards' folders."""
        return {card.name: card for _, card in read_cards(self._paths)}

    def read(self, number: int, losses: ReadLosses) -> Iterator[Sample]:
        """Records of a shard, each with its image in memory. Invalid samples are counted as
        ``no_record``, ``bad_record``, ``bad_link`` or ``no_image``.

        Raises:
            InputError: not a tar archive, a truncated or damaged one, or one without any record.
        """
        path, valid, problems = self._paths[number], 0, TarProblems()
        for tar_sample in read_tar(path, problems):
            sample = self._sample(path, tar_sample, losses, problems)
            if sample is not None:
                valid += 1
                yield sample
        for reason in ("truncated_tar", "bad_tar_header"):
            if reason in problems.counts:
                note = next(n for n in problems.notes if "after" in n)
                raise InputError(f"{path}: {reason}: {note}; make the shard again")
        if not valid and problems.notes:
            raise InputError(
                f"{path}: no record in it ({problems.notes[0]}); {WANTED}. To export labels of crawl shards: "
                "export-labels LABELS --phrases PHRASES --shards CRAWL"
            )
        losses.add_problems(self.names[number], problems)

    def _sample(self, path: str, sample: TarSample, losses: ReadLosses, problems: TarProblems) -> Sample | None:
        if "json" not in sample.files:
            reason, detail = "no_record", f"it has {sorted(sample.files)}, and no json"
        else:
            try:
                record = GroundingRecord.model_validate_json(sample.files["json"])
                image = image_of(sample)
                if image is not None:
                    return Sample(record, sample.key, image[0], partial(bytes, image[1]))
                if "link" in sample.files:
                    link = ImageLink.model_validate_json(sample.files["link"])
                    if link.extension not in IMAGE_EXTENSIONS:
                        raise ValueError(f"extension {link.extension!r}")
                    return Sample(record, sample.key, link.extension, partial(self._links.image, path, link))
                reason, detail = "no_image", f"it has {sorted(sample.files)}, and neither an image nor a link to one"
            except ValidationError as error:
                first = error.errors()[0]
                reason, detail = "bad_record", f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
            except ValueError as error:
                reason, detail = "bad_link", str(error)
        losses.samples.drop(reason)
        if len(problems.notes) < MAX_NOTES:
            problems.notes.append(f"{sample.key}: {detail}")
        return None


class LabelStore:
    """Output of filter-boxes, converted as by build-shards; images are from the crawl."""

    def __init__(
        self, labels: list[str], phrases: str | None, crawl: list[str], dataset: str, verdicts: str | None
    ) -> None:
        self._labels, self._dataset = labels, dataset
        self._verdicts = None if verdicts is None else Verdicts.read(verdicts)
        if self._verdicts is not None:
            self._verdicts.warn_of_unknown_shards(map(stem, labels))
        self.names = [stem(path) for path in labels]
        try:
            self._classes = label_names(labels[0])
        except InputError as error:
            raise InputError(f"{error}; want the folder that filter-boxes wrote") from None
        self._phrases = list[str]()
        if self._classes is None:
            folder = phrases or self._find_phrases(labels[0])
            self._phrases = [join(folder, f"{name}.parquet") for name in self.names]
        self.images = bool(crawl)
        by_stem = {stem(path): path for path in expand_crawl(crawl)} if crawl else {}
        for name, path in zip(self.names, labels, strict=True):
            if crawl and name not in by_stem:
                raise InputError(f"{path}: no shard named {name} among {', '.join(crawl)}")
        self._crawl = [by_stem[name] for name in self.names] if crawl else []
        require_files([*labels, *self._phrases])

    @staticmethod
    def _find_phrases(label_file: str) -> str:
        """Folder ``phrases`` beside the labels' folder or its parent, as in a run's folder."""
        above = parent(parent(label_file))
        name = f"{stem(label_file)}.parquet"
        for folder in (join(above, "phrases"), join(parent(above), "phrases")):
            if file_size(join(folder, name)) is not None:
                return folder
        raise InputError(
            f"{label_file}: no phrases found at {join(above, 'phrases')}; want --phrases FOLDER of parse-phrases"
        )

    def digests(self) -> dict[str, str]:
        """Digests of labels and phrases; a crawl shard is identified by its size, as in
        build-shards' links; a virtual one by its content.
        """
        digests = {}
        for number, name in enumerate(self.names):
            digests[f"{name} labels"] = digest_file(self._labels[number])
            if self._verdicts is not None and (decided := self._verdicts.fingerprint_of(name)):
                digests[f"{name} verdicts"] = decided["verdicts"]
            if self._phrases:
                digests[f"{name} phrases"] = digest_file(self._phrases[number])
            if self.images:
                crawl, size = self._crawl[number], file_size(self._crawl[number])
                digests[f"{name} crawl"] = digest_file(crawl) if virtual_shard(crawl) else str(size)
        return digests

    def cards(self) -> dict[str, DatasetCard]:
        """Card of the set."""
        card = pseudo_label_card(self._dataset, self._classes)
        return {self._dataset: card.model_copy(update={"labelled_by": labelled_by(self._labels)})}

    def read(self, number: int, losses: ReadLosses) -> Iterator[Sample]:
        """Records of a shard. Images missing in the crawl are counted as by build-shards.

        Raises:
            InputError: a file is missing or has another format, or phrases and labels, or the shards'
                class names, are of different runs.
        """
        config = BuildShardsConfig()
        phrases = self._phrases[number] if self._phrases else None
        decided = None if self._verdicts is None else self._verdicts.of(self.names[number])
        store = ShardLabels(phrases, self._labels[number], self._dataset, config, verdicts=decided)
        if store.names != self._classes:
            raise InputError(
                f"{self._labels[number]}: found other class names than {self._labels[0]}'s; want one run's"
            )
        problems = TarProblems()
        if self._crawl:
            for key, record, files in store.joined(self._crawl[number], copied_image, problems):
                ((extension, data),) = files.items()
                yield Sample(record, key, extension, partial(bytes, data))
        else:
            for key, record in store.alone():
                yield Sample(record, key, "jpg", None)
        for total, tally in ((losses.samples, store.samples), (losses.regions, store.regions)):
            for reason, n in tally.dropped.items():  # kept ones are counted when written
                total.drop(reason, n)
        problems.notes += store.notes
        losses.add_problems(self.names[number], problems)
        losses.decided.update(store.numbers())


Source = TrainingShards | LabelStore
