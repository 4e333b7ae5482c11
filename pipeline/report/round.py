"""The report of a round, as an HTML page and as Markdown: metrics, gates, labels and tallies."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.config import SelfTrainConfig
from pipeline.drawing.boxes import write_montage
from pipeline.errors import InputError
from pipeline.evaluation.compare import format_interval
from pipeline.evaluation.label_quality import label_quality
from pipeline.evaluation.report import TITLES, metric_order
from pipeline.inspection.label_store import LabelStore
from pipeline.io.atomic import write_atomic
from pipeline.report.figures import write_gallery
from pipeline.report.page import markdown_table, quality_markdown, quality_rows, tally_markdown
from pipeline.report.provenance import run_provenance
from pipeline.report.templates import render
from pipeline.report.urls import link, thumbnail_url
from pipeline.runs.excluded_shards import crawl_shards, files_of
from pipeline.runs.layout import RunLayout
from pipeline.runs.rounds import RoundResult
from pipeline.runs.summary import gold_of

log = logging.getLogger("glip_self_train")
Reports = Mapping[str, Mapping[str, Any]]
"""Stage -> its StageReport as a dict."""
SHOWN = 8
"""Number of the gallery's images that are also on the round's page."""


def gallery_name(round_number: int) -> str:
    """File name of the round's gallery of labels."""
    return f"labels-round-{round_number}.html"


def label_store(config: SelfTrainConfig, layout: RunLayout, round_number: int) -> LabelStore:
    """The round's labels, with dropped regions and, where it is known, gold."""
    gold = gold_of(config, layout)
    return LabelStore(
        files_of(config, layout, "filter-boxes", round_number), phrases=str(layout.phrases),
        crawl=crawl_shards(config, layout), regions=str(layout.regions(round_number)),
        gold=str(gold) if gold else None,
    )  # fmt: skip


def write_round(config: SelfTrainConfig, layout: RunLayout, result: RoundResult, reports: Reports) -> str:
    """Write ``report/round-N.html``, gallery and montage of its labels; returns Markdown.

    The files contain no times or hosts, so that the same run writes the same bytes.
    """
    from pipeline.report.evaluation import write_evaluation_page  # loads torch

    layout.report.mkdir(parents=True, exist_ok=True)
    number = result.round
    montage = layout.report / f"labels-round-{number}.png"
    links, items, made = {}, [], run_provenance(config)
    if layout.pseudo(number).is_dir():
        title = f"Pseudo-labels of round {number}" if config.rounds > 1 else "Pseudo-labels"
        items = write_gallery(
            label_store(config, layout, number), layout.report / gallery_name(number), title=title, limit=36, made=made
        )
        write_montage(files_of(config, layout, "build-shards", number), montage, limit=8, columns=4)
        links["More of these labels"] = gallery_name(number)
    for name in (f"student-{number}", f"control-{number}", result.teacher):
        known = config.data.evaluated() and (config.trains_control or not name.startswith("control-"))
        if known and (layout.evaluation(name) / "metrics.json").is_file():
            page = layout.report / f"evaluation-{name}.html"
            try:
                write_evaluation_page(layout.evaluation(name), page, made=made, title=f"Evaluation of {name}")
                links[f"Evaluation of {name}"] = page.name
            except InputError as error:  # its set's images are gone, or not known to the version that wrote it
                log.warning("no page of the evaluation of %s: %s", name, error)
    if number > 1:
        links["Previous round"] = f"round-{number - 1}.html"
    gold = gold_of(config, layout)
    quality = label_quality(files_of(config, layout, "filter-boxes", number), gold) if gold else None
    verdict = _verdict(layout, result)
    tables, gates = metric_tables(layout, result, verdict, config.trains_control), verdict.get("gates", [])
    tallies = {name: report["tallies"] for name, report in reports.items()}
    page = layout.report / f"round-{number}.html"
    write_atomic(
        page,
        render(
            "round.html", title=f"Round {number}", result=result, tables=tables, gates=gates,
            quality_rows=quality_rows(quality, config.demo is not None) if quality else [],
            items=items[:: max(1, len(items) // SHOWN)][:SHOWN], tallies=tallies, links=links, made=made,
            headline=_headline(tables),
            has_control=config.trains_control, human_labels=set(config.student.mixture) != {"pseudo"},
        ),
    )  # fmt: skip
    return _markdown(result, tables, gates, quality, tallies, montage, page, config.demo is not None)


def metric_tables(
    layout: RunLayout, result: RoundResult, verdict: Mapping[str, Any], has_control: bool = True
) -> dict[str, list[dict[str, Any]]]:
    """Set -> rows of metric, teacher, control, student, its differences ``difference`` from the teacher
    and ``over_control`` from the control, and their 95 % intervals.
    """
    control_file = layout.evaluation(f"control-{result.round}") / "metrics.json"
    control = json.loads(control_file.read_text())["sets"] if has_control and control_file.is_file() else {}
    over_control = verdict.get("control_sets", {}) if has_control else {}
    return {
        name: [
            {
                "metric": TITLES.get(metric, metric),
                "teacher": cells[0]["value"],
                "control": control.get(name, {}).get(metric),
                "student": cells[1]["value"],
                "difference": cells[1]["difference"],
                "interval": cells[1].get("difference_interval"),
                "over_control": (over := over_control.get(name, {}).get(metric, [{}, {}])[1]).get("difference"),
                "over_control_interval": over.get("difference_interval"),
            }
            for metric, cells in sorted(rows.items(), key=lambda row: metric_order(row[0]))
        ]
        for name, rows in verdict.get("sets", {}).items()
    }


def _headline(tables: Mapping[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """The first metric of each set, as :func:`pipeline.report.page.headline`."""
    return [
        {
            "title": f"{name} {row['metric']}, student", "value": row["student"],
            "over": {
                name: row[key]
                for name, key in (("control", "over_control"), ("teacher", "difference"))
                if row[key] is not None
            },
        }
        for name, rows in tables.items()
        for row in rows[:1]
    ]  # fmt: skip


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
    demo: bool,
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
                *([_over_control(row)] if has_control else []),
            ]
            for row in rows
        ]
        heads = ["", "teacher", *["control"] * has_control, "student", "student - teacher (95 %)"]
        heads += ["student - control (95 %)"] * has_control
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
        parts.append(quality_markdown(quality, demo))
    parts += [f"### {stage}\n\n{tally_markdown(tally)}" for stage, tally in tallies.items() if tally]
    return "\n".join([*parts, f"{link('Page of this round', page)}\n"])


def _over_control(row: Mapping[str, Any]) -> str:
    if row["over_control"] is None:
        return "–"
    return f"{row['over_control']:+.1f}{format_interval(row['over_control_interval'], '+')}"
