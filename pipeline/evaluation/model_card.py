"""Writes the model card (README.md) of an evaluated model folder."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml

from pipeline.evaluation.compare import Evaluated
from pipeline.evaluation.report import COUNTS, PROTOCOLS, TITLES, format_metric
from pipeline.io.atomic import write_atomic

BEGIN, END = "<!-- evaluate: begin -->", "<!-- evaluate: end -->"
MARK = "<!-- evaluated: {} -->"


def write_card(model: str | Path, evaluation: str | Path) -> Path:
    """Write README.md in the model folder, or replace the part of it between evaluate's markers.

    Results of the same revision on other sets are kept. Returns the file.

    Raises:
        InputError: no evaluation in ``evaluation``.
    """
    evaluated = Evaluated.read(evaluation)
    file = Path(model) / "README.md"
    old = file.read_text() if file.is_file() else None
    sets = (_earlier_results(old, evaluated.model) if old else {}) | _results(evaluated)
    head = ["## Results", "", f"Revision `{evaluated.model}`, measured by this project's `evaluate`."]
    results = "\n".join([BEGIN, *head, *(f"\n{MARK.format(name)}\n{text}" for name, text in sets.items()), END])
    if old is None:
        text = _head(Path(model), evaluated) + results + "\n"
    elif BEGIN in old and END in old:
        text = old[: old.index(BEGIN)] + results + old[old.index(END) + len(END) :]
    else:
        text = old.rstrip("\n") + "\n\n" + results + "\n"
    write_atomic(file, text)
    return file


def _head(model: Path, evaluated: Evaluated) -> str:
    kind = json.loads((model / "config.json").read_text()).get("model_type", "unknown")
    front: dict[str, Any] = {
        "pipeline_tag": "zero-shot-object-detection",
        "tags": [kind, "open-vocabulary", "phrase-grounding", "self-training"],
    }
    return (
        f"---\n{yaml.safe_dump(front, sort_keys=False)}---\n\n# {model.resolve().parent.name}/{model.name}\n\n"
        f"A {kind} model, revision `{evaluated.model}`. It detects the objects that class names or a caption name.\n\n"
    )


def _earlier_results(card: str, revision: str) -> dict[str, str]:
    """Set -> results of this revision in the card."""
    inner = card.partition(BEGIN)[2].partition(END)[0]
    if f"`{revision}`" not in inner:
        return {}
    _, *parts = re.split(MARK.format(r"([\w.-]+)") + r"\n", inner)
    return {name: text.strip("\n") for name, text in zip(parts[::2], parts[1::2], strict=True)}


def _results(evaluated: Evaluated) -> dict[str, str]:
    results = {}
    for name, metrics in evaluated.sets.items():
        shown = [n for n in TITLES if n in metrics and n not in COUNTS]
        protocol = PROTOCOLS[evaluated.protocols[name]]
        lines = [f"**{name}** ({protocol}; {format_metric('images', metrics['images'])} images)", ""]
        if shown:
            lines += [f"| {' | '.join(TITLES[n] for n in shown)} |", "|---:" * len(shown) + "|"]
            lines.append(f"| {' | '.join(format_metric(n, metrics[n]) for n in shown)} |")
        else:
            lines.append("Undefined: no ground truth.")
        results[name] = "\n".join(lines)
    return results
