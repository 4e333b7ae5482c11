"""Checks of a recipe before anything runs: each problem is a line, so that all can be mended at once."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from functools import partial
from glob import has_magic
from pathlib import Path
from typing import Any

from pipeline.annotators.base import model_type
from pipeline.config import SelfTrainConfig, TrainConfig
from pipeline.config.recipes import load_recipe
from pipeline.config.training import too_long_a_warmup
from pipeline.data.caption_files import open_captions
from pipeline.data.image_names import names_for
from pipeline.data.manifests import SetManifest, is_name, read_manifest
from pipeline.demo.manifest import MANIFEST
from pipeline.errors import InputError, did_you_mean
from pipeline.evaluation.compare import MEAN_SET
from pipeline.evaluation.promotion import parse_gates
from pipeline.filtering.gold import gold_tables
from pipeline.filtering.rules import extra_rules
from pipeline.io.files import check_writable, file_size
from pipeline.io.model_folder import check_backbone, check_glip_folder, is_released, text_encoder_folder
from pipeline.io.paths import is_url, no_folder, resolve_path
from pipeline.io.shard_patterns import expand_crawl
from pipeline.phrases.parser import model_name
from pipeline.runs.layout import RunLayout

PATIENCE = 20.0
"""Seconds for the answers of all stores together, where a person waits for them: S3 lists some 100,000 objects."""
Probe = Callable[[], str | None]
"""Looks at a place; returns a problem's line, or raises an InputError with it."""


def recipe_problems(
    config: SelfTrainConfig, layout: RunLayout, patience: float = PATIENCE, *, ingests: bool = True
) -> list[str]:
    """Return a line for each thing that would stop a run: settings, sets, paths, stores, the folder.

    Only the machine is left out (:func:`flows.preflight.check_machine`). Nothing is written.

    Args:
        patience: seconds for the answers of stores. ingests: whether the sets' own files are read.
    """
    return [
        *input_problems(config),
        *warmup_problems(config, layout),
        *(set_problems(config) if ingests else ()),
        *file_problems(config, patience),
        *folder_problems(layout),
    ]


def refuse(problems: Iterable[str]) -> None:
    """Raise one InputError with all lines, if there are any."""
    if lines := list(problems):
        raise InputError("\n".join(lines))


def input_problems(config: SelfTrainConfig) -> Iterator[str]:
    """Check that the recipe has what its stages need, and that its parts fit each other."""
    data, teacher, student = config.data, config.teacher, config.student
    sources = list(data.sources)
    if teacher.steps == 0 and teacher.init is None:
        yield "teacher.steps: found 0 without teacher.init; want the model to label with: --set teacher.init=MODEL"
    if teacher.steps > 0 and not sources:
        yield (
            "data.sources: found none to train the teacher on; want sets of the manifest, such as "
            "[detection, grounding], or a teacher as it is (teacher.init and teacher.steps=0)"
        )
    if "pseudo" in teacher.mixture:
        yield "teacher.mixture: `pseudo` are the labels that the teacher makes; only the student learns from them"
    trains_only = set(student.mixture) == {"pseudo"}
    as_it_is = teacher.steps == 0 and not teacher.mixture
    for name, training, without in (("teacher", teacher, as_it_is), ("student", student, trains_only)):
        if not without and set(training.mixture) - {"pseudo"} != set(sources):
            yield f"{name}.mixture names {sorted(training.mixture)}, but data.sources are {sources}"
        phases = {"first": (training.first_steps, training.first_mixture)}
        phases["last"] = training.last_steps, training.last_mixture
        for phase, (steps, shares) in phases.items():
            if steps and not set(training.mixture) >= set(shares) > set():
                yield f"{name}.{phase}_mixture {shares}: want shares of some of {sorted(training.mixture)}"
        if training.last_steps and training.first_steps + training.last_steps > training.steps:
            yield (
                f"{name}.last_steps: found {training.last_steps} of {training.steps} steps, {training.first_steps} of "
                "them first_steps; want fewer"
            )
    if "pseudo" not in student.mixture:
        found = ", ".join(student.mixture) or "nothing"
        example = ", ".join(f"{name}: {share:g}" for name, share in (student.mixture | {"pseudo": 1}).items())
        yield (
            f"student.mixture: found {found} without `pseudo`, the labels that the student is to learn from; want it "
            f"too, such as --set student.mixture='{{{example}}}'"
        )
    if config.trains_control and not teacher.mixture and trains_only:
        yield (
            "teacher.mixture: found none for the control, which learns from human labels only; want shares of "
            f"{sources}, or control=false"
        )
    yield from _lines(lambda: extra_rules(config.filter_boxes))
    yield from _evaluation_problems(config)
    yield from _validation_problems(config)
    if config.demo is None:
        if not data.labelled():
            yield "data.crawl: found none; want the shards to label (the demo alone makes its own): data.crawl=SHARDS"
        if data.manifest is None and (named := data.used()):
            yield f"data.manifest: found none; want the manifest of the sets {', '.join(named)}"
    if data.images and data.crawl:
        yield "data.images: found it beside data.crawl; want one of them"
    if data.captions is None and (data.caption_key or data.caption_column):
        yield "data.caption_key, data.caption_column: they are of data.captions; found no such file"
    if data.captions is not None and (data.names is not None or config.demo is not None):
        beside = "the demo" if config.demo is not None else "data.names"
        yield f"data.captions: found it beside {beside}; want one of them"
    if (names := data.names) is not None:
        yield from _lines(lambda: names_for(names), "data.names")
        return
    if data.images and data.captions is None:
        yield (
            "data.names: found none; want the class names to label data.images with, such as 'person. forklift', or "
            "data.captions"
        )
    yield from _lines(lambda: config.parse_phrases.method == "ngrams" or model_name(config.parse_phrases))


def _validation_problems(config: SelfTrainConfig) -> Iterator[str]:
    """A validation needs its set and its times, and a set that nothing is trained on."""
    data = config.data
    validated = [name for name in ("teacher", "student") if getattr(config, name).validate_every]
    if validated and data.validation is None:
        yield f"{validated[0]}.validate_every: found no set to validate on; want data.validation=SET"
    elif data.validation is not None and not validated:
        yield f"data.validation: found {data.validation}, but no steps between validations; want teacher.validate_every"
    if data.validation in data.sources:
        yield f"data.validation: {data.validation} is one of data.sources too; want a set that is not trained on"


def _evaluation_problems(config: SelfTrainConfig) -> Iterator[str]:
    """Gates, gain and frequencies name evaluation sets."""
    evaluated = list(config.data.evaluated())
    sets = [*evaluated, MEAN_SET]
    try:
        for gate in parse_gates(config.promotion.gates):
            if evaluated and not any(fnmatchcase(name, gate.set_pattern) for name in sets):
                hint = did_you_mean(gate.set_pattern, sets)
                yield f"promotion.gates: {gate.text!r} fits no evaluation set{hint}; there are {sets}"
    except InputError as error:
        yield str(error)
    gain = config.promotion.gain
    if gain is not None and evaluated and (name := gain.rpartition(".")[0]) not in evaluated:
        hint = did_you_mean(name, evaluated)
        yield f"promotion.gain: {gain!r} is of no evaluation set{hint}; want SET.METRIC of {evaluated}"
    if others := sorted(set(config.data.frequencies) - set(evaluated)):
        yield f"data.frequencies: {', '.join(others)} is no evaluation set; there are {evaluated}"


def warmup_problems(config: SelfTrainConfig, layout: RunLayout) -> Iterator[str]:
    """Check that no training is shorter than its warm-up, unless a run of an earlier version began with it."""
    begun: Any = None
    for name in ("teacher", "student"):
        training: TrainConfig = getattr(config, name)
        if training.warmup_steps <= training.steps or (name == "teacher" and training.steps == 0):
            continue
        if begun is None and layout.config.is_file():
            try:
                begun = load_recipe(str(layout.config))
            except InputError:
                begun = None  # not a file that a run wrote
        there = begun and getattr(begun, name)
        if there is None or (there.steps, there.warmup_steps) != (training.steps, training.warmup_steps):
            yield too_long_a_warmup(name, training)


def set_problems(config: SelfTrainConfig) -> Iterator[str]:
    """Check that the manifest has the sets of the recipe, and their files: some are read hours after the start."""
    data = config.data
    if config.demo is None and not data.manifest:
        return
    manifest = MANIFEST if config.demo is not None else str(data.manifest)
    if is_url(str(manifest)):
        yield f"data.manifest: found {manifest}; want a file on a file system, or a name of data_manifests/"
        return
    try:
        sets = {name: entry for name, entry in read_manifest(manifest).items() if entry.labelled}
    except InputError as error:
        yield f"data.manifest: {error}"
        return
    for field, names in (
        ("data.sources", data.sources), ("evaluation sets of data", data.evaluated()),
        ("data.validation", (data.validation,) if data.validation else ()),
    ):  # fmt: skip
        for name in names:
            if name not in sets:
                yield f"{field}: {manifest} has no labelled set {name!r}{did_you_mean(name, sets)}"
    if config.demo is None and data.used():
        base = data.root or ("." if is_name(manifest) else str(Path(manifest).parent))
        if not is_url(base) and not Path(base).is_dir():
            yield f"data.root: {base}: no such folder; want the one that the manifest's paths are relative to"
            return
        for name, entry in sets.items():
            for path in dict.fromkeys(_files_of(entry)):
                local = resolve_path(base, path)
                if not (is_url(local) or has_magic(local) or "{" in local or Path(local).exists()):
                    yield f"set {name} of {manifest}: {local}: no such file or folder"


def _files_of(entry: SetManifest) -> Iterator[str]:
    """Paths of a set, as its manifest has them."""
    if entry.annotations is not None:
        yield entry.annotations
    yield from entry.companions.values()
    folders = entry.images_folder or ()
    yield from [folders] if isinstance(folders, str) else folders.values() if isinstance(folders, dict) else folders


def file_problems(config: SelfTrainConfig, patience: float = PATIENCE) -> Iterator[str]:
    """Check the files, model folders and shards that the recipe names; stores are queried for theirs."""
    yield from _model_problems(config)
    if config.demo is not None:
        return
    data = config.data
    remote: list[tuple[str, Probe]] = []
    for pattern in data.labelled():
        if is_url(pattern):
            remote.append((pattern, partial(_remote_problem, pattern)))
        else:
            yield from _lines(partial(expand_crawl, pattern), "data.images" if data.images else "data.crawl")
    if (captions := data.captions) is not None and not is_url(captions):
        yield from _lines(lambda: open_captions(captions, data.caption_key, data.caption_column), "data.captions")
    for name, path in data.frequencies.items():  # others are shards, which ingest may be about to make
        if path.endswith(".json") and (is_url(path) or not Path(path).is_file()):
            wanted = "want a file on a file system" if is_url(path) else "no such file"
            yield f"data.frequencies: {name}: {path}: {wanted}"
    if data.gold is not None:
        gold = data.gold
        if is_url(gold):
            yield f"data.gold: found {gold}; want a folder on a file system"
        else:
            yield from _lines(lambda: gold_tables(gold), "data.gold")
    yield from answers(remote, patience)


def _model_problems(config: SelfTrainConfig) -> Iterator[str]:
    """The teacher's model, and the parts of a new network."""
    init = config.teacher.init
    if init is not None:
        yield from _lines(lambda: _check_init(init, config), f"teacher.init: {init}")
    if (init is None and config.teacher.steps > 0) or config.student_init == "scratch":
        yield from _lines(lambda: text_encoder_folder(config.model.text_encoder))
        yield from _lines(lambda: check_backbone(config.model.backbone))


def _check_init(init: str, config: SelfTrainConfig) -> None:
    """Raise InputError unless the teacher can be, or start from, this model."""
    if is_url(init):
        raise InputError("found a URL; want a model on a file system")
    if is_released(init):
        if not file_size(init):
            raise InputError(f"{'empty' if Path(init).exists() else 'no such'} file; want a released checkpoint")
    elif not Path(init).is_dir():
        raise InputError("no such folder; want a model folder, or a released GLIP checkpoint (.pth)")
    elif (kind := model_type(init)) == "glip":
        check_glip_folder(init)
    elif config.teacher.steps > 0 or config.student_init == "teacher":
        raise InputError(
            f"found a {kind}, which can label but not be trained; want teacher.steps=0 and student_init=scratch with it"
        )


def _remote_problem(url: str) -> str | None:
    """Look whether a store has a URL's shards; of a pattern of many the first and the last."""
    from braceexpand import braceexpand

    named = list(braceexpand(url))
    for one in dict.fromkeys((named[0], named[-1])):
        shards = expand_crawl(one)  # of a folder or glob those that the store lists
        if shards == [one] and file_size(one) is None:
            raise InputError(f"{one}: no such object")
    return None


def answers(probes: Sequence[tuple[str, Probe]], patience: float) -> Iterator[str]:
    """Run probes side by side; yield the problems, one without an answer after ``patience`` seconds among them."""
    found: dict[int, str | None] = {}

    def run(number: int) -> None:
        url, probe = probes[number]
        try:
            found[number] = probe()
        except Exception as error:
            kind = "" if isinstance(error, InputError) else f"{url}: {type(error).__name__}: "
            found[number] = f"data.crawl: {kind}{error}".splitlines()[0]

    threads = [threading.Thread(target=run, args=(number,), daemon=True) for number in range(len(probes))]
    for thread in threads:
        thread.start()
    end = time.monotonic() + patience
    for number, thread in enumerate(threads):
        thread.join(max(0.0, end - time.monotonic()))
        if number not in found:
            yield f"data.crawl: {probes[number][0]}: no answer within {patience:g} s"
        elif (line := found[number]) is not None:
            yield line


def folder_problems(layout: RunLayout) -> Iterator[str]:
    """Check that the run's folder can be written."""
    try:
        check_writable(layout.root)
    except (FileExistsError, NotADirectoryError) as error:
        yield f"out: {no_folder(error.filename)}"
    except OSError as error:
        yield f"out: {error.filename}: {error.strerror}; want a folder that can be written"


def free_bytes(folder: Path) -> int:
    """Free space where a folder is, or would be created."""
    there = folder.absolute()
    while not there.exists() and there != there.parent:
        there = there.parent
    return shutil.disk_usage(there).free


def _lines(check: Callable[[], object], where: str = "") -> Iterator[str]:
    """The line of the InputError that a check raises, if it does."""
    try:
        check()
    except InputError as error:
        yield f"{where}: {error}" if where else str(error)


def with_absolute_paths(config: SelfTrainConfig) -> SelfTrainConfig:
    """The recipe with its relative paths resolved against the working folder, for a process that has another one.

    URLs, names (of manifests, of the text encoder minilm) and absolute paths stay.
    """
    here = Path.cwd()

    def absolute(path: str | None) -> str | None:
        return path if path is None else resolve_path(here, path)

    data, model = config.data, config.model
    manifest = data.manifest if data.manifest and is_name(data.manifest) else absolute(data.manifest)
    root = absolute(data.root) or (str(here) if manifest is not None and manifest == data.manifest else None)
    encoder = model.text_encoder if model.text_encoder == "minilm" else absolute(model.text_encoder)
    new: dict[str, Any] = {
        "data": {
            "manifest": manifest, "root": root, "crawl": tuple(resolve_path(here, path) for path in data.crawl),
            "images": tuple(resolve_path(here, path) for path in data.images),
            "names": absolute(data.names) if data.names and Path(data.names).is_file() else data.names,
            "captions": absolute(data.captions), "gold": absolute(data.gold),
            "frequencies": {n: resolve_path(here, p) for n, p in data.frequencies.items()},
        },
        "model": {"text_encoder": encoder, "backbone": absolute(model.backbone)},
        "teacher": {"init": absolute(config.teacher.init)},
    }  # fmt: skip
    return config.model_copy(update={name: getattr(config, name).model_copy(update=part) for name, part in new.items()})
