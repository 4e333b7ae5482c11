"""The page of one round: who taught, what was labelled, what the student gained, and what was decided; for people, and for the dashboard."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.config import SelfTrainConfig
from pipeline.drawing.boxes import write_montage
from pipeline.evaluation.compare import span_words
from pipeline.evaluation.label_quality import label_quality
from pipeline.evaluation.report import TITLES, place
from pipeline.io.atomic import write_atomic
from pipeline.report.gallery import write_gallery
from pipeline.report.inside import address_of, jpeg_url
from pipeline.report.page import png_url, quality_markdown, tally_markdown
from pipeline.report.templates import render
from pipeline.runs.excluded_shards import files_of
from pipeline.runs.layout import RunLayout
from pipeline.runs.rounds import RoundResult
from pipeline.runs.summary import gold_of

Reports = Mapping[str, Mapping[str, Any]]
"""Stage -> its StageReport, as plain values."""


def gallery_name(round_number: int) -> str:
    """File of the round's page of labels, in the report's folder."""
    return f"labels-round-{round_number}.html"


def write_round(config: SelfTrainConfig, layout: RunLayout, result: RoundResult, reports: Reports) -> str:
    """``report/round-N.html`` with a gallery and a picture of the round's labels; returns the page as Markdown.

    The files hold nothing of times or hosts: the same run gives the same bytes.
    """
    layout.report.mkdir(parents=True, exist_ok=True)
    number = result.round
    picture = layout.report / f"labels-round-{number}.png"
    links = {}
    if layout.pseudo(number).is_dir():
        shards = files_of(config, layout, "build-shards", number)
        title = f"Pseudo-labels of round {number}" if config.rounds > 1 else "Pseudo-labels"
        write_gallery(shards, layout.report / gallery_name(number), title=title, limit=36)
        write_montage(shards, picture, limit=8, columns=4)
        links["More of these labels"] = gallery_name(number)
    if number > 1:
        links["The round before"] = f"round-{number - 1}.html"
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
            picture=png_url(picture) if picture.is_file() else "", tallies=tallies, links=links,
        ),
    )  # fmt: skip
    return _markdown(result, tables, gates, quality, tallies, picture, page)


def metric_tables(
    layout: RunLayout, result: RoundResult, verdict: Mapping[str, Any]
) -> dict[str, list[dict[str, Any]]]:
    """Set -> a row a metric: ``teacher``, ``student``, ``difference`` with its 95 % ``interval``, and ``control`` where there is one."""
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
            for metric, cells in sorted(rows.items(), key=lambda row: place(row[0]))
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
    picture: Path,
    page: Path,
) -> str:
    parts = [f"# Round {result.round}\n\n{result.teacher} taught, {result.student} learnt. **{result.why}**\n"]
    for name, rows in tables.items():
        lines = [
            f"## {name}\n",
            "| | teacher | control | student | student - teacher (95 %) |",
            "|---|---|---|---|---|",
        ]
        for row in rows:
            control = "–" if row["control"] is None else f"{row['control']:.1f}"
            lines.append(
                f"| {row['metric']} | {row['teacher']:.1f} | {control} | {row['student']:.1f} | "
                f"{row['difference']:+.1f}{span_words(row['interval'], '+')} |"
            )
        parts.append("\n".join(lines) + "\n")
    if gates:
        lines = ["## Gates\n", "| gate | metric | student - teacher | |", "|---|---|---|---|"]
        lines += [
            f"| `{g['gate']}` | {g['metric']} | {g['difference']:+.1f} | {'holds' if g['holds'] else '**fails**'} |"
            for g in gates
        ]
        parts.append("\n".join(lines) + "\n")
    if picture.is_file():
        parts.append(f"## Labels\n\n![pseudo-labels of the round]({jpeg_url(picture)})\n")
    if quality:
        parts.append(quality_markdown({"pseudo_labels": quality}))
    parts += [f"### {stage}\n\n{tally_markdown(tally)}" for stage, tally in tallies.items() if tally]
    address = address_of(page)
    parts.append(f"[The page of this round]({address})\n" if address else f"The page of this round: `{page}`\n")
    return "\n".join(parts)
