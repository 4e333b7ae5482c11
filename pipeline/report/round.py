"""The report of a round, as an HTML page and as Markdown: metrics, gates, labels and tallies."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.config import SelfTrainConfig
from pipeline.drawing.boxes import write_montage
from pipeline.evaluation.compare import format_interval
from pipeline.evaluation.label_quality import label_quality
from pipeline.evaluation.report import TITLES, metric_order
from pipeline.io.atomic import write_atomic
from pipeline.report.gallery import write_gallery
from pipeline.report.page import groups, markdown_table, quality_markdown, tally_markdown
from pipeline.report.templates import render
from pipeline.report.urls import link, png_url, thumbnail_url
from pipeline.runs.excluded_shards import files_of
from pipeline.runs.layout import RunLayout
from pipeline.runs.rounds import RoundResult
from pipeline.runs.summary import gold_of

Reports = Mapping[str, Mapping[str, Any]]
"""Stage -> its StageReport as a dict."""


def gallery_name(round_number: int) -> str:
    """File name of the round's gallery of labels."""
    return f"labels-round-{round_number}.html"


def write_round(config: SelfTrainConfig, layout: RunLayout, result: RoundResult, reports: Reports) -> str:
    """Write ``report/round-N.html``, gallery and montage of its labels; returns Markdown.

    The files contain no times or hosts, so that the same run writes the same bytes.
    """
    layout.report.mkdir(parents=True, exist_ok=True)
    number = result.round
    montage = layout.report / f"labels-round-{number}.png"
    links = {}
    if layout.pseudo(number).is_dir():
        shards = files_of(config, layout, "build-shards", number)
        title = f"Pseudo-labels of round {number}" if config.rounds > 1 else "Pseudo-labels"
        write_gallery(shards, layout.report / gallery_name(number), title=title, limit=36)
        write_montage(shards, montage, limit=8, columns=4)
        links["More of these labels"] = gallery_name(number)
    if number > 1:
        links["Previous round"] = f"round-{number - 1}.html"
    gold = gold_of(config, layout)
    quality = label_quality(files_of(config, layout, "filter-boxes", number), gold) if gold else None
    verdict = _verdict(layout, result)
    tables, gates = metric_tables(layout, result, verdict), verdict.get("gates", [])
    tallies = {name: report["tallies"] for name, report in reports.items()}
    page = layout.report / f"round-{number}.html"
    write_atomic(
        page,
        render(
            "round.html", title=f"Round {number}", result=result, tables=tables, gates=gates, quality=quality,
            montage=png_url(montage) if montage.is_file() else "", tallies=tallies, links=links,
            groups=groups(quality) if quality else (), has_control=config.trains_control,
            human_labels=set(config.student.mixture) != {"pseudo"},
        ),
    )  # fmt: skip
    return _markdown(result, tables, gates, quality, tallies, montage, page)


def metric_tables(
    layout: RunLayout, result: RoundResult, verdict: Mapping[str, Any]
) -> dict[str, list[dict[str, Any]]]:
    """Set -> rows of metric, teacher, control, student, difference and its 95 % interval."""
    control_file = layout.evaluation(f"control-{result.round}") / "metrics.json"
    control = json.loads(control_file.read_text())["sets"] if control_file.is_file() else {}
    return {
        name: [
            {
                "metric": TITLES.get(metric, metric),
                "teacher": cells[0]["value"],
                "control": control.get(name, {}).get(metric),
                "student": cells[1]["value"],
                "difference": cells[1]["difference"],
                "interval": cells[1].get("difference_interval"),
            }
            for metric, cells in sorted(rows.items(), key=lambda row: metric_order(row[0]))
        ]
        for name, rows in verdict.get("sets", {}).items()
    }


def _verdict(layout: RunLayout, result: RoundResult) -> dict[str, Any]:
    file = layout.evaluation(result.student) / "promotion.json"
    return json.loads(file.read_text()) if result.promoted is not None else {}


def _markdown(
    result: RoundResult,
    tables: Mapping[str, list[dict[str, Any]]],
    gates: Sequence[Mapping[str, Any]],
    quality: Mapping[str, Any] | None,
    tallies: Mapping[str, Mapping[str, Any]],
    montage: Path,
    page: Path,
) -> str:
    parts = [f"# Round {result.round}\n\nTeacher {result.teacher}, student {result.student}. **{result.why}**\n"]
    has_control = any(row["control"] is not None for rows in tables.values() for row in rows)
    for name, rows in tables.items():
        cells = [
            [
                row["metric"],
                f"{row['teacher']:.1f}",
                *(["–" if row["control"] is None else f"{row['control']:.1f}"] if has_control else []),
                f"{row['student']:.1f}",
                f"{row['difference']:+.1f}{format_interval(row['interval'], '+')}",
            ]
            for row in rows
        ]
        heads = ["", "teacher", *["control"] * has_control, "student", "student - teacher (95 %)"]
        parts.append(f"## {name}\n\n{markdown_table(heads, cells)}")
    if gates:
        cells = [
            [
                f"`{g['gate']}`",
                g["metric"],
                f"{g['difference']:+.1f}{format_interval(g.get('difference_interval'), '+')}",
                "holds" if g["holds"] else "**fails**",
            ]
            for g in gates
        ]
        parts.append(f"## Gates\n\n{markdown_table(['gate', 'metric', 'difference (95 %)', ''], cells)}")
    if montage.is_file():
        parts.append(f"## Labels\n\n![pseudo-labels of the round]({thumbnail_url(montage)})\n")
    if quality:
        parts.append(quality_markdown({"pseudo_labels": quality}))
    parts += [f"### {stage}\n\n{tally_markdown(tally)}" for stage, tally in tallies.items() if tally]
    return "\n".join([*parts, f"{link('Page of this round', page)}\n"])
