"""The run's report: one HTML page with everything in it, and the same numbers as Markdown for the dashboard."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from pipeline.io.atomic import write_atomic
from pipeline.report.plots import loss_curves, precision_by_score
from pipeline.report.templates import render

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
    title: str = "GLIP self-training",
    pictures: Mapping[str, str | Path] | None = None,
    links: Mapping[str, str] | None = None,
    curves: Mapping[str, Any] | None = None,
) -> None:
    """Write the page.

    Args:
        summary: what :func:`pipeline.runs.summary.summarise` gives.
        pictures: caption -> PNG file, put into the page. links: text -> address relative to the page.
        curves: model -> rows of its training curve.
    """
    quality = summary.get("pseudo_labels")
    page = render(
        "page.html",
        title=title,
        summary=summary,
        table=comparison(summary),
        metrics=METRICS,
        quality=quality,
        quality_plot=Markup(precision_by_score(quality["by_score"])) if quality else "",
        curves=Markup(loss_curves(curves or {})),
        tallies=tally_rows(summary),
        stages=stage_rows(summary),
        pictures={name: png_url(path) for name, path in (pictures or {}).items() if Path(path).is_file()},
        links=links or {},
    )
    write_atomic(out, page)


def comparison(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rows of the comparison: teacher, control, student, and chance where it is known."""
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


def tally_rows(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row a stage and unit: seen, kept, and the reasons of what went."""
    rows = []
    for stage, entry in summary.get("stages", {}).items():
        for unit, tally in (entry.get("report") or {}).get("tallies", {}).items():
            rows.append({"stage": stage, "unit": unit, **tally})
    return rows


def stage_rows(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Seconds and peak memory of each stage that ran as a child."""
    return [
        {"stage": name, "seconds": entry["seconds"], "peak_mib": entry["peak_mib"]}
        for name, entry in summary.get("stages", {}).items()
        if "seconds" in entry
    ]


def comparison_markdown(summary: Mapping[str, Any]) -> str:
    """The models side by side, and what each of them is."""
    rows = comparison(summary)
    lines = ["| | " + " | ".join(head for _, head in METRICS) + " |", "|---" * (len(METRICS) + 1) + "|"]
    for row in rows:
        cells = ["–" if row[m] is None else f"{row[m]:.1f}" for m, _ in METRICS]
        lines.append(f"| **{row['name']}** | " + " | ".join(cells) + " |")
    said = [f"- {row['name']}: {row['what']}" for row in rows]
    for row in summary["by_round"]:
        said.append(f"- round {row['result']['round']}: {row['result']['student']} {row['result']['why']}")
    return "\n".join([*lines, "", *said, f"- the model to use: **{summary['best']}**"]) + "\n"


def quality_markdown(summary: Mapping[str, Any]) -> str:
    """How good the pseudo-labels are, where gold boxes tell; else nothing."""
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
    """What a stage kept and dropped, and why, as a Markdown table."""
    lines = ["| | seen | kept | dropped because |", "|---|---|---|---|"]
    for unit, tally in sorted(tallies.items()):
        why = ", ".join(f"{r.replace('_', ' ')} {n:,}" for r, n in tally["dropped"].items()) or "–"
        lines.append(f"| {unit} | {tally['seen']:,} | {tally['kept']:,} | {why} |")
    return "\n".join(lines) + "\n"


def png_url(path: str | Path) -> str:
    """A PNG file inside a URL."""
    return "data:image/png;base64," + base64.b64encode(Path(path).read_bytes()).decode()
