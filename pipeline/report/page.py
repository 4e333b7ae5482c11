"""The run's report: a self-contained HTML page, and its tables as Markdown for the dashboard."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from pipeline.io.atomic import write_atomic
from pipeline.report.plots import loss_curves, precision_by_score
from pipeline.report.templates import render
from pipeline.report.urls import png_url

MODELS = ("teacher", "control", "student")
METRICS = (
    ("base_recall_at_1", "BASE R@1"),
    ("base_ap50", "BASE AP50"),
    ("novel_recall_at_1", "NOVEL R@1"),
    ("novel_ap50", "NOVEL AP50"),
)


def write_report(
    summary: Mapping[str, Any],
    out: str | Path,
    *,
    images: Mapping[str, str | Path] | None = None,
    links: Mapping[str, str] | None = None,
    curves: Mapping[str, Any] | None = None,
) -> None:
    """Write the page.

    Args:
        summary: of :func:`pipeline.runs.summary.summarise`.
        images: caption -> PNG file to embed. links: text -> address relative to the page.
        curves: model -> rows of its training curve.
    """
    quality = summary.get("pseudo_labels")
    page = render(
        "page.html",
        title="GLIP self-training",
        summary=summary,
        table=comparison(summary),
        metrics=METRICS,
        quality=quality,
        quality_plot=Markup(precision_by_score(quality["by_score"])) if quality else "",
        curves=Markup(loss_curves(curves or {})),
        tallies=_tallies(summary),
        stages=stage_rows(summary),
        images={name: png_url(path) for name, path in (images or {}).items() if Path(path).is_file()},
        links=links or {},
    )
    write_atomic(out, page)


def comparison(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rows of the comparison: teacher, control, student, and chance if it is known."""
    steps = summary.get("steps", {})
    started = {"teacher": "from scratch", "control": "from the teacher"}
    started["student"] = "from the teacher" if summary.get("student_init") == "teacher" else "from scratch"
    rows = []
    for name in MODELS:
        if name in summary:
            what = f"{steps[name]:,} steps {started[name]}" if name in steps else ""
            labels = "human and pseudo-labels" if name == "student" else "human labels"
            rows.append({"name": name, "what": f"{what}, {labels}", **{m: summary[name].get(m) for m, _ in METRICS}})
    if "chance" in summary:
        rows.append(
            {
                "name": "chance", "what": "one of the scene's four objects", "base_recall_at_1": summary["chance"],
                "base_ap50": None, "novel_recall_at_1": summary["chance"], "novel_ap50": None,
            }
        )  # fmt: skip
    return rows


def _tallies(summary: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Stage -> unit -> tally, of stages that have any."""
    tallies = {stage: (entry.get("report") or {}).get("tallies") for stage, entry in summary.get("stages", {}).items()}
    return {stage: units for stage, units in tallies.items() if units}


def stage_rows(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Seconds and peak memory of each stage that ran in child processes."""
    return [
        {"stage": name, "seconds": entry["seconds"], "peak_mib": entry["peak_mib"]}
        for name, entry in summary.get("stages", {}).items()
        if "seconds" in entry
    ]


def comparison_markdown(summary: Mapping[str, Any]) -> str:
    """The metrics of the models, how they were trained, and the results of the rounds."""
    rows = comparison(summary)
    lines = ["| | " + " | ".join(head for _, head in METRICS) + " |", "|---" * (len(METRICS) + 1) + "|"]
    for row in rows:
        cells = ["–" if row[m] is None else f"{row[m]:.1f}" for m, _ in METRICS]
        lines.append(f"| **{row['name']}** | " + " | ".join(cells) + " |")
    lines += ["", *(f"- {row['name']}: {row['what']}" for row in rows)]
    for row in summary["by_round"]:
        lines.append(f"- round {row['result']['round']}: {row['result']['student']} {row['result']['why']}")
    return "\n".join([*lines, f"- the model to use: **{summary['best']}**"]) + "\n"


def quality_markdown(summary: Mapping[str, Any]) -> str:
    """Precision and recall of the pseudo-labels; "" without gold boxes."""
    quality = summary.get("pseudo_labels")
    if not quality:
        return ""
    lines = ["| pseudo-labels | labels | precision % | recall % |", "|---|---|---|---|"]
    for n in ("all", "base", "novel"):
        lines.append(f"| {n} | {quality[n]['labels']:,} | {quality[n]['precision']:.1f} | {quality[n]['recall']:.1f} |")
    return "\n".join(lines) + "\n"


def cost_markdown(summary: Mapping[str, Any]) -> str:
    """Seconds and memory of each stage."""
    rows = [f"| {s['stage']} | {s['seconds']:,.1f} | {s['peak_mib']:,.0f} |" for s in stage_rows(summary)]
    return "\n".join(["| stage | seconds | peak MiB |", "|---|---|---|", *rows]) + "\n" if rows else ""


def tally_markdown(tallies: Mapping[str, Mapping[str, Any]]) -> str:
    """A stage's tallies as a Markdown table."""
    lines = ["| | seen | kept | dropped, by reason |", "|---|---|---|---|"]
    for unit, tally in sorted(tallies.items()):
        dropped = ", ".join(f"{r.replace('_', ' ')} {n:,}" for r, n in tally["dropped"].items()) or "–"
        lines.append(f"| {unit} | {tally['seen']:,} | {tally['kept']:,} | {dropped} |")
    return "\n".join(lines) + "\n"
