"""The model card (README.md) of an evaluated model folder: what it is, and what evaluate measured."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml

from pipeline.evaluation.compare import Evaluated
from pipeline.evaluation.report import COUNTS, PROTOCOLS, TITLES, cell
from pipeline.io.atomic import write_atomic

BEGIN, END = "<!-- evaluate: begin -->", "<!-- evaluate: end -->"
MARK = "<!-- evaluated: {} -->"


def write_card(model: str | Path, evaluation: str | Path) -> Path:
    """Write or renew README.md in the model folder; of a file that is there, only the part between evaluate's two marks. Sets that were measured
    before, of the same revision, stay.

    Raises:
        InputError: no evaluation in ``evaluation``.
    """
    read = Evaluated.read(evaluation)
    saved = json.loads((Path(evaluation) / "metrics.json").read_text())
    file = Path(model) / "README.md"
    old = file.read_text() if file.is_file() else None
    sets = (_other_sets(old, read.model) if old else {}) | _results(read, saved["protocols"])
    head = ["## Results", "", f"Revision `{read.model}`, measured by this project's `evaluate`."]
    results = "\n".join([BEGIN, *head, *(f"\n{MARK.format(name)}\n{text}" for name, text in sets.items()), END])
    if old is None:
        text = _head(Path(model), read) + results + "\n"
    elif BEGIN in old and END in old:
        text = old[: old.index(BEGIN)] + results + old[old.index(END) + len(END) :]
    else:
        text = old.rstrip("\n") + "\n\n" + results + "\n"
    write_atomic(file, text)
    return file


def _head(model: Path, read: Evaluated) -> str:
    kind = json.loads((model / "config.json").read_text()).get("model_type", "unknown")
    front: dict[str, Any] = {
        "pipeline_tag": "zero-shot-object-detection",
        "tags": [kind, "open-vocabulary", "phrase-grounding", "self-training"],
    }
    return (
        f"---\n{yaml.safe_dump(front, sort_keys=False)}---\n\n# {model.resolve().parent.name}/{model.name}\n\n"
        f"A {kind} model, revision `{read.model}`. Give it an image and names or a caption; it boxes what they name.\n\n"
    )


def _other_sets(old: str, revision: str) -> dict[str, str]:
    """What the card holds of this revision, by set."""
    inner = old.partition(BEGIN)[2].partition(END)[0]
    if f"`{revision}`" not in inner:
        return {}
    _, *parts = re.split(MARK.format(r"([\w.-]+)") + r"\n", inner)
    return {name: text.strip("\n") for name, text in zip(parts[::2], parts[1::2], strict=True)}


def _results(read: Evaluated, protocols: dict[str, str]) -> dict[str, str]:
    found = {}
    for name, metrics in read.sets.items():
        shown = [n for n in TITLES if n in metrics and n not in COUNTS]
        lines = [f"**{name}** ({PROTOCOLS[protocols[name]]}; {cell('images', metrics['images'])} images)", ""]
        lines += [f"| {' | '.join(TITLES[n] for n in shown)} |", "|---:" * len(shown) + "|"]
        lines.append(f"| {' | '.join(cell(n, metrics[n]) for n in shown)} |")
        found[name] = "\n".join(lines)
    return found
