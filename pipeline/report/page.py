"""Tables of the run's report: rows for its page, Markdown for the dashboard."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pipeline.runs.summary import ROLES, columns, origin


def markdown_table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Markdown table; ends with a newline."""
    lines = ("|" + "|".join(f" {cell} " if cell else " " for cell in row) + "|" for row in (heads, *rows))
    return "\n".join([next(lines), "|---" * len(heads) + "|", *lines]) + "\n"


def comparison(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rows of the comparison: teacher, control, student, and chance if it is known."""
    shown, rows = columns(summary), []
    for name in ROLES:
        if name in summary:
            labels = "" if name == "teacher" and summary.get("teacher_init") else f", {_learnt(summary, name)}"
            rows.append(
                {"name": name, "what": origin(summary, name) + labels, **{m: summary[name].get(m) for m in shown}}
            )
    if "chance" in summary:
        by_guess = {m: summary["chance"] if m.endswith("recall_at_1") else None for m in shown}
        rows.append({"name": "chance", "what": "one of the scene's four objects", **by_guess})
    return rows


def _learnt(summary: Mapping[str, Any], name: str) -> str:
    if name != "student":
        return "human labels"
    return "human and pseudo-labels" if summary.get("human_labels", True) else "pseudo-labels"


def stage_rows(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Seconds and peak memory of each stage that ran in child processes."""
    return [
        {"stage": name, "seconds": entry["seconds"], "peak_mib": entry["peak_mib"]}
        for name, entry in summary.get("stages", {}).items()
        if "seconds" in entry
    ]


def comparison_markdown(summary: Mapping[str, Any]) -> str:
    """The metrics of the models, how they were trained, and the results of the rounds."""
    rows, shown = comparison(summary), columns(summary)
    cells = [[f"**{r['name']}**", *(_percent(r[m]) for m in shown)] for r in rows]
    lines = [f"- {row['name']}: {row['what']}" for row in rows]
    for row in summary["by_round"]:
        lines.append(f"- round {row['result']['round']}: {row['result']['student']} {row['result']['why']}")
    lines.append(f"- the model to use: **{summary['best']}**")
    table = markdown_table(["", *shown.values()], cells) + "\n" if shown else ""
    return table + "\n".join(lines) + "\n"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"


def groups(quality: Mapping[str, Any]) -> tuple[str, ...]:
    """Groups of phrases with figures of the labels' quality: BASE and NOVEL only where the gold tells them apart."""
    return ("all", "base", "novel") if quality["novel"]["gold"] else ("all",)


def quality_markdown(summary: Mapping[str, Any]) -> str:
    """Precision and recall of the pseudo-labels; "" without gold boxes."""
    quality = summary.get("pseudo_labels")
    if not quality:
        return ""
    rows = [
        [n, f"{quality[n]['labels']:,}", *(_percent(quality[n][metric]) for metric in ("precision", "recall"))]
        for n in groups(quality)
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
