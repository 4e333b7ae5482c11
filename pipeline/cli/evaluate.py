"""The commands that measure models, compare them, and decide which one teaches."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import click

from pipeline.cli.common import DEVICE, FILE, OUT, one_line_errors, setup_logging, stage_command, terminal
from pipeline.errors import InputError

SAMPLES = click.option(
    "--samples", type=click.IntRange(1), default=1000, show_default=True, help="Resamples of the images."
)
SEED = click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the resampling.")
NOT_PROMOTED = 3


@stage_command("evaluate", name="evaluate")
@click.option("--model", required=True, help="Model folder.")
@click.option(
    "--set-shards", "sets", multiple=True, required=True, metavar="NAME=SHARDS", help="A set with gold boxes."
)
@click.option(
    "--frequencies",
    multiple=True,
    metavar="NAME=FILE",
    help="How often a set's names stand in training data: LVIS' annotation JSON (APr, APc, APf), a JSON object of names and "
    "numbers, or training shards to count in.",
)
@OUT
@DEVICE
@click.option(
    "--processes",
    type=click.IntRange(1),
    help="Copies of the model, each in a process of its own.  [default: one a GPU; 1 on the CPU]",
)
@click.option(
    "--workers",
    type=click.IntRange(1),
    help="Threads of each process that decode images ahead.  [default: its share of the cores, 8 at most]",
)
@click.option("--model-card", is_flag=True, help="Also write the results into README.md of the model folder.")
def evaluate(
    config: Any,
    model: str,
    sets: tuple[str, ...],
    frequencies: tuple[str, ...],
    out: str,
    device: str,
    processes: int | None,
    workers: int | None,
    model_card: bool,
) -> dict[str, Any]:
    """Measure a model on sets with gold boxes, by the published protocols (--set protocols.NAME=lvis).

    Predictions are stored shard by shard: kill it anywhere and start it again. OUT gets metrics.json, report.md and
    the predictions in COCO's format.

    \b
    Example: evaluate --model checkpoints/student/final --set-shards eval_novel='train/eval_novel-*.tar' --out evaluation
    """
    from pipeline.cli.train import named_sources
    from pipeline.evaluation.compare import Evaluated
    from pipeline.evaluation.report import format_metric
    from pipeline.stages import evaluate as stage

    metrics = stage.run(
        config, model, named_sources(sets, "--set-shards"), out, frequencies=_named_files(frequencies), device=device,
        processes=processes, decoders=workers, progress=terminal(),
    )  # fmt: skip
    protocols = Evaluated.read(out).protocols
    for name, values in metrics.items():
        click.echo(f"{name} ({protocols[name]}): " + ", ".join(f"{k} {format_metric(k, v)}" for k, v in values.items()))
    if model_card:
        from pipeline.evaluation.model_card import write_card

        click.echo(f"wrote {write_card(model, out)}")
    return {"sets": metrics, "protocols": protocols}


def _named_files(options: Sequence[str]) -> dict[str, str]:
    named = {}
    for option in options:
        name, equals, path = option.partition("=")
        if not equals or not path:
            raise InputError(f"--frequencies {option!r}: want NAME=FILE, such as lvis=lvis_v1_minival.json")
        named[name] = path
    return named


@click.command()
@click.argument("folders", nargs=-1, required=True, metavar="A B [C ...]")
@SAMPLES
@SEED
@click.option("--json", "json_file", type=FILE, help="Also write the comparison as JSON.")
@click.option("-v", "--verbose", is_flag=True, help="Tell more.")
def compare(folders: tuple[str, ...], samples: int, seed: int, json_file: str | None, verbose: bool) -> None:
    """Put evaluation folders side by side, with confidence intervals by the bootstrap over images.

    \b
    Example: compare evaluation/teacher evaluation/student-1 evaluation/control-1
    """
    setup_logging(verbose)
    with one_line_errors("compare"):
        from pipeline.evaluation.compare import compare as compare_folders
        from pipeline.evaluation.compare import compare_lines
        from pipeline.io.atomic import write_json

        if len(folders) < 2:
            raise InputError("want two evaluation folders or more")
        compared = compare_folders(folders, samples=samples, seed=seed)
        if json_file:
            write_json(json_file, compared)
        click.echo("\n".join(compare_lines(compared)))


@click.command()
@click.argument("student")
@click.option("--over", "teacher", required=True, metavar="TEACHER", help="Evaluation folder of the present teacher.")
@click.option(
    "--gates",
    multiple=True,
    metavar="GATE[,GATE...]",
    help="SET.METRIC>=POINTS or SET.METRIC>POINTS: student minus teacher; shell patterns are fine. May be repeated.  "
    "[default: *.ap>=-1, *.recall_at_1>=-1, *.precision_at_1>=-1, *.ap_rare>=0]",
)
@SAMPLES
@SEED
@click.option("--out", type=FILE, help="The verdict's file.  [default: STUDENT/promotion.json]")
@click.option("-v", "--verbose", is_flag=True, help="Tell more.")
def promote(
    student: str, teacher: str, gates: tuple[str, ...], samples: int, seed: int, out: str | None, verbose: bool
) -> None:
    """Decide whether a student teaches the next round: only if every gate holds. STUDENT is its evaluation folder.

    Exit code 0: promoted; 3: a gate does not hold. Both write promotion.json.

    \b
    Example: promote evaluation/student-1 --over evaluation/teacher --gates '*.ap>=-0.5,eval_novel.recall_at_1>0'
    """
    setup_logging(verbose)
    with one_line_errors("promote"):
        from pipeline.evaluation import promotion as stage

        verdict = stage.promote(student, teacher, gates=gates, samples=samples, seed=seed, out=out)
    for row in verdict["gates"]:
        sign = "holds" if row["holds"] else "FAILS"
        click.echo(f"{sign}  {row['gate']}: {row['metric']} {row['teacher']:.1f} -> {row['student']:.1f}")
    if not verdict["promoted"]:
        click.echo(f"promote: not promoted: {'; '.join(verdict['failed'])}", err=True)
        sys.exit(NOT_PROMOTED)
    click.echo("promoted")


@click.command("label-qa")
@click.argument("folder", metavar="EVALUATION")
@click.option(
    "--precision",
    "wanted",
    type=click.FloatRange(0, 100),
    multiple=True,
    default=(70.0, 80.0, 90.0),
    show_default=True,
    help="Propose the lowest threshold that reaches this precision, in percent. May be repeated.",
)
@click.option("--out", help="Folder for label_qa.json and label_qa.md.  [default: EVALUATION]")
@click.option("-v", "--verbose", is_flag=True, help="Tell more.")
def label_qa(folder: str, wanted: tuple[float, ...], out: str | None, verbose: bool) -> None:
    """How good a teacher's labels would be, from its evaluation on gold sets: by score, box size and frequency.

    \b
    Example: label-qa evaluation/teacher --precision 80
    """
    setup_logging(verbose)
    with one_line_errors("label-qa"):
        from pipeline.evaluation.label_qa import write_label_qa

        click.echo(write_label_qa(folder, out or folder, wanted))
