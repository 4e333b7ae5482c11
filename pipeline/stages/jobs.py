"""Jobs: immutable descriptions of one run of a stage (inputs, outputs, settings, options).

The Python API, the command line, the flow's child processes and Ray run the same jobs:
``PseudoLabel(shards="crawl", teacher="glip-t", out="regions").run()``. A job is JSON in a file
(:func:`write_job`, :func:`read_job`; ``run-job FILE``). Nothing heavy is imported before one runs.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Generic, Literal

from pydantic import BaseModel, BeforeValidator, Field
from typing_extensions import TypeVar

from pipeline.config import (
    BuildShardsConfig,
    EvaluateConfig,
    FilterConfig,
    IngestConfig,
    MergeConfig,
    ModelConfig,
    ParsePhrasesConfig,
    PseudoLabelConfig,
    RescoreConfig,
    TeacherConfig,
    TrainConfig,
)
from pipeline.config.recipes import build
from pipeline.demo.config import DemoDataConfig, DemoDataSummary
from pipeline.errors import InputError, RunError
from pipeline.execution.commit import report_path
from pipeline.execution.options import Cli, Device, DeviceOptions, LabellingOptions, RunOptions, ShardOptions, WorkLeft
from pipeline.execution.reports import StageReport
from pipeline.execution.stage_failures import stage_failure
from pipeline.io.atomic import write_json
from pipeline.io.files import file_size, listing
from pipeline.io.paths import join, stem
from pipeline.io.shard_patterns import expand_crawl, expand_shards
from pipeline.writers.registry import WRITTEN

if TYPE_CHECKING:  # of the quoted base classes below
    from pipeline.dedup.report import DedupReport  # noqa: F401
    from pipeline.filtering.thresholds import Thresholds  # noqa: F401
    from pipeline.training.report import TrainReport  # noqa: F401


R = TypeVar("R", covariant=True, default=Any)


def _text(value: Any) -> Any:
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _texts(value: Any) -> Any:
    if isinstance(value, str | os.PathLike):
        return (_text(value),)
    return tuple(map(_text, value)) if isinstance(value, Sequence) else value


def _named(value: Any) -> Any:
    return {name: _texts(paths) for name, paths in value.items()} if isinstance(value, dict) else value


def _of_training(value: Any) -> Any:
    """Settings of a recipe's teacher without its model, which is the job's ``init``."""
    return value.training() if isinstance(value, TeacherConfig) else value


PathText = Annotated[str, BeforeValidator(_text)]
"""A path or URL; ``pathlib`` paths are converted to str."""
Paths = Annotated[tuple[str, ...], BeforeValidator(_texts)]
"""Shards: folders, globs, brace patterns, paths or URLs; a single one needs no tuple."""
NamedPaths = Annotated[dict[str, tuple[str, ...]], BeforeValidator(_named)]
"""Name -> shards."""

CRAWL = (
    "Crawl shards: a folder, glob or 'crawl/{00000..00099}.tar'; paths or URLs. Or images without shards: a folder of "
    "image files, a list of their paths (.txt, .lst), Parquet tables with an image column."
)
OUT = "Folder for the outputs. Shards that are done there already are skipped."
REGIONS = "Regions that pseudo-label wrote: a folder, glob or brace pattern; paths or URLs."
PHRASES = "Folder that parse-phrases wrote."
COUNTS = "File that count-phrases wrote; balance_to and thresholds by frequency need it."
VERDICTS = "Folder of verdicts (review and import-verdicts write it), which outrank the teacher's labels."
IOU = "IoU from which a box counts as correct."
PositiveShare = Annotated[float, Field(gt=0, le=1)]


class PhraseCounts(BaseModel):
    """Number of phrases in the file that count-phrases wrote, and the file's size and digest."""

    phrases: int
    min_count: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Exported:
    """Report of an export, and hints on how to read it."""

    report: StageReport
    hints: tuple[str, ...]


class Job(RunOptions, Generic[R]):
    """Base of all jobs. ``R``: type of the report.

    Attributes:
        stage: name of the command. section: the recipe's section with the ``settings``.
        entry: function that runs the job, as ``module:function`` below pipeline.stages. Default:
            ``run`` of the module with the stage's name.
        written_last: file of the output folder that the job writes last; "" if there is none.
    """

    stage: ClassVar[str]
    section: ClassVar[str] = ""
    entry: ClassVar[str] = ""
    written_last: ClassVar[str] = ""

    def run(self) -> R:
        """Run the stage and return its report.

        Raises:
            InputError: a setting, path or input is wrong. RunError: the work could not be finished.
            StageError: a failure such as a full disk, with the path.
        """
        module, _, function = (self.entry or self.stage.replace("-", "_")).partition(":")
        try:
            report: R = getattr(import_module(f"pipeline.stages.{module}"), function or "run")(self)
        except (InputError, RunError):
            raise
        except Exception as error:
            if (failure := stage_failure(error, getattr(self, "out", None) or "")) is not None:
                raise failure from error
            raise
        return report

    def finished(self) -> R | None:
        """Return the report if all outputs are complete, else None."""
        # imports nothing heavy where a file is missing
        try:
            return self.model_copy(update={"check_only": True}).run() if self._may_be_finished() else None
        except WorkLeft:
            return None

    def _may_be_finished(self) -> bool:
        return bool(self.written_last) and file_size(join(dict(self)["out"], self.written_last)) is not None


class WholeJob(Job[R]):
    """Base of the jobs that do not work shard by shard: none of their inputs may fail."""

    max_failed: Literal[0] = Field(0, exclude=True)


class PerShardJob(Job[StageReport]):
    """Base of the jobs that make one output for each shard.

    Attributes:
        shards_field: field with the input shards; "" if they are known only after reading the
            inputs.
        suffix: of the input shards.
    """

    shards_field: ClassVar[str] = "shards"
    suffix: ClassVar[str] = ".tar"
    out: PathText = Field(description=OUT)

    def _may_be_finished(self) -> bool:
        if not self.shards_field:
            return bool(listing(self.out, ".report.json"))
        given = getattr(self, self.shards_field)
        shards = expand_crawl(given) if self.suffix == ".tar" else expand_shards(given, suffix=self.suffix)
        return all(file_size(report_path(self.out, stem(shard))) is not None for shard in shards)


class Ingest(PerShardJob, ShardOptions):
    """Training shards from human-labelled sets in their published formats."""

    stage, section, shards_field = "ingest", "ingest", ""
    manifest: Annotated[PathText, Cli("manifest")]
    settings: IngestConfig = IngestConfig()
    root: PathText | None = Field(
        None,
        description="Folder or URL that the manifest's paths are relative to. Default: the manifest's folder, or for a "
        "name the working folder.",
    )
    only: str | None = Field(None, description="Ingest this set of the manifest only.")


class ParsePhrases(PerShardJob, ShardOptions):
    """Noun phrases of a crawl's captions: ``out/SHARD.parquet``."""

    stage, section = "parse-phrases", "parse_phrases"
    shards: Paths = Field(description=CRAWL)
    settings: ParsePhrasesConfig = ParsePhrasesConfig()
    captions: Annotated[PathText | None, Cli(metavar="FILE")] = Field(
        None,
        description="Captions to use in place of the shards' own: a .parquet, .csv or .jsonl with columns of keys and "
        "captions. Several captions of an image are joined.",
    )
    caption_key: str | None = Field(
        None,
        description="Column of the keys, which are sample keys or, of loose images, paths or file names.  [default: "
        "key, __key__, file_name, filename, path, image or id]",
    )
    caption_column: str | None = Field(
        None, description="Column of the captions, texts or lists of texts.  [default: caption, captions or text]"
    )


class PseudoLabel(PerShardJob, LabellingOptions):
    """A teacher's boxes of the phrases, with scores: ``out/SHARD.parquet``."""

    stage, section = "pseudo-label", "pseudo_label"
    shards: Paths = Field(description=CRAWL)
    phrases: PathText | None = Field(
        None, description="Folder that parse-phrases wrote. Default: OUT/../phrases, written there if it is missing."
    )
    names: str | None = Field(
        None,
        description="Class names to detect in place of phrases: 'person. fork lift', a file (.txt, .json, .yaml), a "
        "set's word (coco, voc, lvis, objects365), or a file of each image's own names (.parquet, .csv, .jsonl; "
        "columns key and names).",
    )
    teacher: PathText = Field(description="Model folder of the teacher (convert-checkpoint makes one of a release).")
    settings: PseudoLabelConfig = PseudoLabelConfig()
    licence: str | None = Field(
        None,
        description="Licence of the teacher's weights, noted in the store and in exports. Default: the one that "
        "README.md in its folder states.",
    )


class Rescore(PerShardJob, LabellingOptions):
    """A second score of stored regions, by CLIP, SigLIP or a vision-language model: ``out/SHARD.parquet``."""

    stage, section = "rescore", "rescore"
    shards: Paths = Field(description=CRAWL)
    regions: PathText = Field(description="Folder that pseudo-label wrote.")
    scorer: PathText | None = Field(None, description="Model folder of a CLIP, SigLIP or SigLIP2.")
    verifier: PathText | None = Field(
        None,
        description="In place of --scorer: model folder of a vision-language model with a chat template, or a folder "
        "with the config.json of an endpoint (docs/teachers.md).",
    )
    settings: RescoreConfig = RescoreConfig()


class MergeRegions(PerShardJob, ShardOptions):
    """Regions of several teachers, fused: ``out/SHARD.parquet``."""

    stage, section, shards_field = "merge-regions", "merge_regions", ""
    regions: Paths = Field(
        description="Regions that pseudo-label wrote with one of the teachers: a folder, glob or brace pattern, once a "
        "teacher; all with the same shards."
    )
    settings: MergeConfig = MergeConfig()


class FilterBoxes(PerShardJob, ShardOptions):
    """Labels selected from stored regions: ``out/SHARD.parquet``."""

    stage, section, shards_field, suffix = "filter-boxes", "filter_boxes", "regions", ".parquet"
    regions: Paths = Field(description=REGIONS)
    settings: FilterConfig = FilterConfig()
    thresholds: PathText | None = Field(
        None,
        description="File that calibrate wrote, or for class names a JSON object {NAME: THRESHOLD}; replaces the "
        "threshold setting.",
    )
    counts: PathText | None = Field(None, description=COUNTS)


class SweepThresholds(WholeJob[dict[str, Any]]):
    """Counts of the stored regions that each of several thresholds would keep; writes nothing."""

    stage, section, entry = "sweep-thresholds", "filter_boxes", "thresholds:sweep"
    regions: Paths = Field(description=REGIONS)
    settings: FilterConfig = FilterConfig()
    thresholds: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
    gold: PathText | None = Field(None, description="Folder of ground-truth tables, for precision and recall.")
    iou: PositiveShare = Field(0.5, description=IOU)


class CountPhrases(WholeJob[PhraseCounts]):
    """Mentions of each phrase, and its regions that the rules keep: a table in the file ``out``."""

    stage, section, entry = "count-phrases", "filter_boxes", "thresholds:count_phrases"
    regions: Paths = Field(description=REGIONS)
    out: PathText = Field(description="Parquet file for the counts.")
    settings: FilterConfig = FilterConfig()
    min_count: int = Field(10, ge=1, description="Leave out phrases with fewer mentions and kept regions.")
    thresholds: PathText | None = Field(None, description="File that calibrate wrote, if filter-boxes will use it.")
    counts: PathText | None = Field(None, description=COUNTS)


class Calibrate(WholeJob["Thresholds"]):
    """Thresholds that reach a precision, by class name or band of phrase frequency: JSON in the file ``out``."""

    stage, section, entry = "calibrate", "filter_boxes", "thresholds:calibrate"
    regions: Paths = Field(description=REGIONS)
    gold: PathText | None = Field(None, description="Folder of ground-truth tables, named as the shards are.")
    verdicts: PathText | None = Field(
        None, description="In place of ground truth: folder of verdicts on a random sample of the regions."
    )
    out: PathText = Field(description="JSON file for the thresholds.")
    settings: FilterConfig = FilterConfig()
    precision: float = Field(0.9, ge=0, le=1, description="Share of the kept boxes that must be correct.")
    counts: PathText | None = Field(None, description=COUNTS)
    bands: tuple[int, ...] = Field(
        (100, 1000, 10000), description="Numbers of mentions at which the second and later bands begin."
    )
    by: Literal["estimate", "lower"] = Field(
        "estimate",
        description="Value that must reach the precision: the sample's own, or the lower end of its 95 % interval.",
    )
    min_labels: int = Field(50, ge=1, description="Number of the sample's boxes that a threshold must keep.")
    iou: PositiveShare = Field(0.5, description=IOU)


class FitVerifier(WholeJob[dict[str, Any]]):
    """A verifier, fitted on regions that are known to be right or wrong, and its report: a folder ``out``."""

    stage, entry = "fit-verifier", "verify:fit"
    regions: Paths = Field(description=REGIONS)
    verdicts: PathText | None = Field(None, description="Folder of verdicts on the regions.")
    gold: PathText | None = Field(None, description="Folder of ground-truth tables, in place of verdicts.")
    out: PathText = Field(description="Folder for the verifier and its report.")
    iou: PositiveShare = Field(0.5, description=IOU)
    seed: int = Field(0, ge=0, description="Seed of the folds and of the fit.")


class ApplyVerifier(PerShardJob, ShardOptions):
    """Stored regions with the probability that each is right, ``verified``: ``out/SHARD.parquet``."""

    stage, entry, shards_field, suffix = "verify", "verify:apply", "regions", ".parquet"
    regions: Paths = Field(description=REGIONS)
    verifier: PathText = Field(description="Folder that verify fit wrote.")


class BuildShards(PerShardJob, ShardOptions):
    """Training shards from labels and images: ``out/DATASET-SHARD.tar``."""

    stage, section = "build-shards", "build_shards"
    shards: Paths = Field(description=CRAWL)
    phrases: PathText | None = Field(None, description=f"{PHRASES} Labels of class names need none.")
    labels: PathText = Field(description="Folder that filter-boxes wrote.")
    settings: BuildShardsConfig = BuildShardsConfig()
    dataset: str = Field("pseudo", description="Name of the new set.")
    without: Annotated[PathText | None, Cli(metavar="FILE")] = Field(
        None, description="Leave these samples out: a table as dedup writes it (columns shard and key)."
    )
    verdicts: PathText | None = Field(None, description=VERDICTS)


class TrainModel(WholeJob["TrainReport"]):
    """Training of a teacher or a student; writes the model to ``out/final``."""

    stage, written_last = "train", "report.json"
    sources: Annotated[NamedPaths, Cli("--source", "NAME=SHARDS")] = Field(description="A source of the mixture.")
    init: PathText | None = Field(
        None, description="Model folder to start from. Default: a new network of the recipe's model section."
    )
    validation: Annotated[NamedPaths, Cli("--validation", "NAME=SHARDS")] = Field(
        {}, description="Records that are not trained on, for validations (--set validate_every=N)."
    )
    out: PathText = Field(
        description="Folder for checkpoints and the final model. An unfinished training there is resumed."
    )
    settings: Annotated[TrainConfig, BeforeValidator(_of_training)] = TrainConfig()
    model: ModelConfig | None = None
    device: Device = "cpu"
    threads: int | None = Field(None, ge=1, description="CPU threads. Default: all cores.")
    data_workers: int = Field(
        0,
        ge=0,
        description="Reading processes of each training process; batches do not depend on their number.",
    )
    tracker: Annotated[Literal["wandb", "trackio"] | None, Cli("--log-with")] = Field(
        None, description="A tracker beside TensorBoard."
    )


class Evaluate(WholeJob[dict[str, dict[str, float]]], DeviceOptions):
    """Metrics of a model on sets with ground truth."""

    stage, section, written_last = "evaluate", "evaluate", "metrics.json"
    model: PathText = Field(description="Model folder.")
    sets: Annotated[NamedPaths, Cli("--set-shards", "NAME=SHARDS")] = Field(description="A set with ground truth.")
    frequencies: Annotated[dict[str, PathText], Cli(metavar="NAME=FILE")] = Field(
        {},
        description="How often a set's names occur in training data: LVIS' annotation JSON (APr, APc, APf), a JSON "
        "object of names and numbers, or training shards to count in.",
    )
    out: PathText = Field(description=OUT)
    settings: EvaluateConfig = EvaluateConfig()


class ExportLabels(WholeJob[Exported]):
    """Labels in a format of other trainers and viewers."""

    stage, entry, written_last = "export-labels", "export", "export.report.json"
    dirs: Annotated[Paths, Cli("dirs", "DIR...")]
    to: Annotated[str, Cli(metavar=f"[{'|'.join(WRITTEN)}|...]")] = Field(
        description="The format to write; may be your own (docs/python.md)."
    )
    out: PathText = Field(description="New folder or URL for the export.")
    images: Literal["copy", "none"] | None = Field(
        None,
        description="Copy the images, unchanged, beside the labels, or write labels only.  [default: copy, if they can "
        "be read]",
    )
    phrases: PathText | None = Field(
        None,
        description="Of a label store of captions: the folder that parse-phrases wrote.  [default: `phrases` beside or "
        "above DIR]",
    )
    crawl: Annotated[Paths, Cli("--shards")] = Field(
        (), description="Of a label store: the crawl that holds the images; folder, glob or pattern."
    )
    verdicts: PathText | None = Field(None, description=f"Of a label store: {VERDICTS[0].lower()}{VERDICTS[1:]}")
    dataset: str | None = Field(None, description="Of a label store: the name of the set.  [default: pseudo]")
    class_names: Annotated[Literal["phrase", "root"] | None, Cli("--classes")] = Field(
        None,
        description="yolo, coco, voc: the class of a grounding label is its whole phrase or its head noun.  [default: "
        "yolo, voc: phrase; coco: none, captions with spans]",
    )
    val_share: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="yolo: share of the images for a validation split, chosen by key.  [default: no split]",
    )
    image_root: str | None = Field(
        None,
        description="label-studio: address of OUT for Label Studio, with which those of the images begin.  [default: "
        "of local files served from the folder above OUT, or the bucket's]",
    )
    drop_empty: bool = Field(False, description="Leave out images without a label; they are counted.")


class ImportVerdicts(WholeJob[StageReport]):
    """Verdicts of people from an annotated export of a labelling tool."""

    stage = "import-verdicts"
    file: Annotated[PathText, Cli("file", "FILE")]
    source: Annotated[Literal["label-studio", "cvat", "coco"], Cli("--from")] = Field(
        description="Format of FILE: Label Studio's JSON, CVAT for images 1.1 (annotations.xml), COCO's JSON."
    )
    regions: Paths = Field(description=f"{REGIONS} Those that the exported labels were selected from.")
    out: PathText = Field(description="Folder of verdicts, to which new ones are added.")
    phrases: PathText | None = Field(
        None, description="Folder that parse-phrases wrote: for boxes of phrases without any region, from CVAT or COCO."
    )
    labels: PathText | None = Field(
        None,
        description="Folder of filter-boxes that was exported, for files that do not say which regions were; COCO's do "
        "not. Only exported regions can be rejected.",
    )
    by: str | None = Field(None, description="Name of the person.  [default: as the file says, or the tool's name]")
    all_images: bool = Field(
        False,
        description="cvat: images without the tick `reviewed`, coco: images without any box have been looked at, too.",
    )


class Dedup(Job["tuple[DedupReport, StageReport | None]"], ShardOptions):
    """Images of shards that are near-duplicates of evaluation images, or of each other."""

    stage = "dedup"
    shards: Annotated[Paths, Cli("shards", "SHARDS...")]
    against: Annotated[Paths, Cli(metavar="[NAME=]EVALSET")] = Field(
        (), description="Evaluation images: training shards (what ingest wrote) or a folder of image files."
    )
    within: bool = Field(False, description="Also find copies among the shards themselves; the first of each stays.")
    out: PathText = Field("dedup", description="Folder for the hashes, which are computed once, and for the matches.")
    distance: int = Field(11, ge=0, le=16, description="Number of bits of the 64-bit hash that may differ (search).")
    details: int = Field(72, ge=0, le=256, description="Number of all 256 bits that may differ (second check).")
    mirrored: bool = Field(False, description="Also find images that are mirrored left to right.")
    drop: bool = Field(False, description="Also write OUT/shards: the shards without the matches.")
    pictures: int = Field(24, ge=0, description="Number of pairs on the page, the least similar first.")


class ConvertCheckpoint(WholeJob[dict[str, str]]):
    """Model folder ``out/final`` of a released GLIP checkpoint, whose variant is found by its entries."""

    stage, written_last = "convert-checkpoint", "final/training_state.json"
    checkpoint: PathText = Field(description="Released checkpoint (.pth).")
    out: PathText = Field(description="Folder for the model folder `final`.")


class MakeDemoData(WholeJob[DemoDataSummary]):
    """The demo's data sets, drawn."""

    stage, written_last = "make-demo-data", "summary.json"
    out: PathText = Field(description="Folder that is new, empty or holds an earlier demo's data.")
    settings: DemoDataConfig = DemoDataConfig()


JOBS: dict[str, type[Job]] = {
    job.stage: job
    for job in (
        MakeDemoData, ConvertCheckpoint, Ingest, ParsePhrases, PseudoLabel, Rescore, MergeRegions, FilterBoxes,
        SweepThresholds, CountPhrases, Calibrate, FitVerifier, ApplyVerifier, BuildShards, TrainModel, Evaluate,
        ExportLabels, ImportVerdicts, Dedup,
    )
}  # fmt: skip
"""Jobs by name of the stage."""


def plain(report: Any) -> Any:
    """Return a job's report as JSON values."""
    return report.model_dump(mode="json") if isinstance(report, BaseModel) else report


def write_job(path: str | Path, job: Job) -> None:
    """Write a job as JSON that :func:`read_job` reads."""
    write_json(path, {"stage": job.stage, "job": job.model_dump(mode="json")})


def read_job(path: str | Path) -> Job:
    """Read a job that :func:`write_job` wrote.

    Raises:
        InputError: the file is missing or holds no job.
    """
    try:
        data = json.loads(Path(path).read_text())
        kind = JOBS[data["stage"]]
        values = data["job"]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputError(
            f"{path}: found no job in it ({type(error).__name__}: {error}); want a file of a stage's job"
        ) from None
    return build(kind, values, where=str(path))
