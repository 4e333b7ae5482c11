"""Commands that evaluate models, compare them, and promote students to teachers."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from pipeline.cli.common import FILE, command, job_command, make_job
from pipeline.errors import InputError
from pipeline.io.shard_patterns import expand_shards
from pipeline.stages.jobs import Evaluate

SAMPLES = click.option(
    "--samples", type=click.IntRange(1), default=1000, show_default=True, help="Bootstrap resamples of the images."
)
SEED = click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of the bootstrap.")
NOT_PROMOTED = 3


@job_command(Evaluate)
@click.option("--model-card", is_flag=True, help="Also write the results into README.md of the model folder.")
def evaluate(values: dict[str, Any], model_card: bool) -> dict[str, Any]:
    """Evaluate a model on sets with ground truth by published protocols (--set
    protocols.NAME=lvis).

    Predictions are stored shard by shard, so a killed run resumes. OUT gets metrics.json, report.md,
    report.html with pictures of the worst errors, and the predictions in COCO's format.

    \b
    Example: evaluate --model checkpoints/student/final \\
        --set-shards eval_novel='train/eval_novel-*.tar' --out evaluation
    """
    from pipeline.evaluation.compare import Evaluated
    from pipeline.evaluation.report import format_metric

    job = make_job(Evaluate, values)
    metrics = job.run()
    protocols = Evaluated.read(job.out).protocols
    from pipeline.report.evaluation import write_evaluation_page
    from pipeline.report.provenance import provenance

    page = Path(job.out) / "report.html"
    sets = {name: [s for path in paths for s in expand_shards(path)] for name, paths in job.sets.items()}
    write_evaluation_page(job.out, page, title=f"Evaluation of {job.model}", made=provenance(), shards=sets)
    for name, values in metrics.items():
        click.echo(f"{name} ({protocols[name]}): " + ", ".join(f"{k} {format_metric(k, v)}" for k, v in values.items()))
    click.echo(f"wrote {page}")
    if model_card:
        from pipeline.evaluation.model_card import write_card

        click.echo(f"wrote {write_card(job.model, job.out)}")
    return {"sets": metrics, "protocols": protocols}


@command("compare")
@click.argument("folders", nargs=-1, required=True, metavar="A B [C ...]")
@SAMPLES
@SEED
@click.option("--json", "json_file", type=FILE, help="Also write the comparison as JSON.")
def compare(folders: tuple[str, ...], samples: int, seed: int, json_file: str | None) -> None:
    """Compare evaluation folders, with confidence intervals by a bootstrap over images.

    \b
    Example: compare evaluation/teacher evaluation/student-1 evaluation/control-1
    """
    from pipeline.evaluation.compare import compare as compare_folders
    from pipeline.evaluation.compare import compare_lines
    from pipeline.io.atomic import write_json

    if len(folders) < 2:
        raise InputError("want two evaluation folders or more")
    compared = compare_folders(folders, samples=samples, seed=seed)
    if json_file:
        write_json(json_file, compared)
    click.echo("\n".join(compare_lines(compared)))


@command("promote")
@click.argument("student")
@click.option("--over", "teacher", required=True, metavar="TEACHER", help="Evaluation folder of the present teacher.")
@click.option(
    "--control",
    help="Evaluation folder of the model that was trained as the student was, but without its labels.",
)
@click.option(
    "--gates",
    multiple=True,
    metavar="GATE[,GATE...]",
    help="SET.METRIC>=POINTS or SET.METRIC>POINTS: student minus teacher, with control: before it student minus "
    "control; may be a shell pattern or repeated.  [default: *.ap>=-1, *.recall_at_1>=-1, *.precision_at_1>=-1, "
    "*.ap_rare>=0; with --control also control:*.ap>=0, control:*.recall_at_1>=0, control:*.precision_at_1>=0]",
)
@SAMPLES
@SEED
@click.option("--out", type=FILE, help="File for the decision.  [default: STUDENT/promotion.json]")
def promote(
    student: str, teacher: str, control: str | None, gates: tuple[str, ...], samples: int, seed: int, out: str | None
) -> None:
    """Decide whether a student becomes the next round's teacher: only if every gate holds.

    STUDENT is its evaluation folder. Exit code 0: promoted; 3: a gate does not hold. Both write
    promotion.json.

    \b
    Example: promote evaluation/student-1 --over evaluation/teacher --control evaluation/control-1
    """
    from pipeline.evaluation import promotion

    verdict = promotion.promote(student, teacher, control=control, gates=gates, samples=samples, seed=seed, out=out)
    for row in verdict["gates"]:
        sign = "holds" if row["holds"] else "FAILS"
        before = row["teacher"] if "teacher" in row else row["control"]
        click.echo(f"{sign}  {row['gate']}: {row['metric']} {before:.1f} -> {row['student']:.1f}")
    if not verdict["promoted"]:
        click.echo(f"promote: not promoted: {'; '.join(verdict['failed'])}", err=True)
        sys.exit(NOT_PROMOTED)
    click.echo("promoted")


@command("label-qa")
@click.argument("folder", required=False, metavar="[EVALUATION]")
@click.option("--regions", help="In place of EVALUATION: regions that pseudo-label wrote, judged by verdicts.")
@click.option("--verdicts", help="Folder of verdicts on these regions, of a random sample of them.")
@click.option(
    "--precision",
    "wanted",
    type=click.FloatRange(0, 100),
    multiple=True,
    default=(70.0, 80.0, 90.0),
    show_default=True,
    help="Propose the lowest threshold that reaches this precision, in percent. May be repeated.",
)
@click.option("--out", help="Folder for label_qa.json and label_qa.md.  [default: EVALUATION or VERDICTS]")
def label_qa(
    folder: str | None, regions: str | None, verdicts: str | None, wanted: tuple[float, ...], out: str | None
) -> None:
    """Estimate the quality of a teacher's labels by score, box size and frequency.

    \b
    Example: label-qa evaluation/teacher --precision 80
             label-qa --regions regions --verdicts verdicts
    """
    from pipeline.evaluation.label_qa import write_label_qa, write_verdict_qa

    if folder is not None and regions is None and verdicts is None:
        click.echo(write_label_qa(folder, out or folder, wanted))
    elif folder is None and regions is not None and verdicts is not None:
        click.echo(write_verdict_qa(regions, verdicts, out or verdicts, wanted))
    else:
        raise InputError("want the folder of an EVALUATION, or --regions and --verdicts")
