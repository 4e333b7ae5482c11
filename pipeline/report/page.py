"""Tables of the run's report: rows for its page, Markdown for the dashboard."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pipeline.runs.summary import ROLES, columns, origin

QUALITY = {"all": "all", "base": "names with human labels", "novel": "other names"}
"""Title of each group of label_quality."""


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


def headline(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """``title``, ``value`` of the student and its differences ``over`` teacher and control, for the
    first metric of each set.
    """
    student = summary.get("student", {})
    first = {
        head.rsplit(" ", 1)[0]: (m, head)
        for m, head in reversed(columns(summary).items())
        if student.get(m) is not None
    }
    return [
        {
            "title": f"{head}, student", "value": student[m],
            "over": {n: student[m] - summary[n][m] for n in ("control", "teacher") if m in summary.get(n, {})},
        }
        for m, head in reversed(first.values())
    ]  # fmt: skip


def quality_rows(quality: Mapping[str, Any], demo: bool) -> list[tuple[str, Mapping[str, Any]]]:
    """(title, counts) of the groups of labels that there are; the demo's are named BASE and NOVEL."""
    groups = {
        name: quality[name] for name in QUALITY if name == "all" or quality[name]["gold"] or quality[name]["labels"]
    }
    if not demo and len(groups) == 2:
        groups = {"all": quality["all"]}  # the other group is all of them
    return [(name if demo else QUALITY[name], counts) for name, counts in groups.items()]


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


def quality_markdown(quality: Mapping[str, Any], demo: bool) -> str:
    """Precision and recall of pseudo-labels (label_quality)."""
    rows = [
        [title, f"{counts['labels']:,}", *(_percent(counts[metric]) for metric in ("precision", "recall"))]
        for title, counts in quality_rows(quality, demo)
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
