"""Tables of the run's report: rows for its page, Markdown for the dashboard."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pipeline.runs.summary import COLUMNS

MODELS = ("teacher", "control", "student")
METRICS = tuple(COLUMNS.items())


def metrics_of(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The METRICS that any of the models has: a run without a set of NOVEL names has none of theirs."""
    return [(key, head) for key, head in METRICS if any(summary.get(m, {}).get(key) is not None for m in MODELS)]


def quality_groups(quality: Mapping[str, Any]) -> list[str]:
    """Groups of gold phrases to show: BASE and NOVEL only where gold boxes distinguish them."""
    return ["all", "base", "novel"] if quality["novel"]["gold"] else ["all"]


def markdown_table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Markdown table; ends with a newline."""
    lines = ("|" + "|".join(f" {cell} " if cell else " " for cell in row) + "|" for row in (heads, *rows))
    return "\n".join([next(lines), "|---" * len(heads) + "|", *lines]) + "\n"


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


def stage_rows(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Seconds and peak memory of each stage that ran in child processes."""
    return [
        {"stage": name, "seconds": entry["seconds"], "peak_mib": entry["peak_mib"]}
        for name, entry in summary.get("stages", {}).items()
        if "seconds" in entry
    ]


def comparison_markdown(summary: Mapping[str, Any]) -> str:
    """The metrics of the models, how they were trained, and the results of the rounds."""
    rows, metrics = comparison(summary), metrics_of(summary)
    cells = [[f"**{r['name']}**", *(_percent(r[m]) for m, _ in metrics)] for r in rows]
    lines = [f"- {row['name']}: {row['what']}" for row in rows]
    for row in summary["by_round"]:
        lines.append(f"- round {row['result']['round']}: {row['result']['student']} {row['result']['why']}")
    lines.append(f"- the model to use: **{summary['best']}**")
    return markdown_table(["", *(head for _, head in metrics)], cells) + "\n" + "\n".join(lines) + "\n"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"


def quality_markdown(summary: Mapping[str, Any]) -> str:
    """Precision and recall of the pseudo-labels; "" without gold boxes."""
    quality = summary.get("pseudo_labels")
    if not quality:
        return ""
    rows = [
        [n, f"{quality[n]['labels']:,}", *(_percent(quality[n][metric]) for metric in ("precision", "recall"))]
        for n in quality_groups(quality)
    ]
    return markdown_table(["pseudo-labels", "labels", "precision %", "recall %"], rows)


def cost_markdown(summary: Mapping[str, Any]) -> str:
    """Seconds and memory of each stage; "" without any."""
    rows = [[s["stage"], f"{s['seconds']:,.1f}", f"{s['peak_mib']:,.0f}"] for s in stage_rows(summary)]
    return markdown_table(["stage", "seconds", "peak MiB"], rows) if rows else ""


def tally_markdown(tallies: Mapping[str, Mapping[str, Any]]) -> str:
    """A stage's tallies as a Markdown table."""
    rows = []
    for unit, tally in sorted(tallies.items()):
        dropped = ", ".join(f"{r.replace('_', ' ')} {n:,}" for r, n in tally["dropped"].items()) or "–"
        rows.append([unit, f"{tally['seen']:,}", f"{tally['kept']:,}", dropped])
    return markdown_table(["", "seen", "kept", "dropped, by reason"], rows)
