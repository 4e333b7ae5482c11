"""Models side by side: metrics of several evaluation folders, and intervals of their differences over the same images."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import InputError
from pipeline.evaluation.bootstrap import centred, draw_weights, estimates, interval
from pipeline.evaluation.match_tables import Evidence, read_evidence
from pipeline.evaluation.report import COUNTS, TITLES, place

Rows = dict[str, list[dict[str, Any]]]
"""Metric -> a cell for each model."""
MEAN = "odinw"
MEAN_SET = f"mean of {MEAN}"
"""Sets of this protocol are also compared by their mean, under this name."""


@dataclass(frozen=True)
class Evaluated:
    """An evaluation folder. sets, protocols, settings: its metrics and how they were taken, by set."""

    folder: Path
    model: str
    sets: dict[str, dict[str, float]]
    protocols: dict[str, str]
    settings: dict[str, dict[str, Any]]

    @classmethod
    def read(cls, folder: str | Path) -> Evaluated:
        """Raises InputError: no metrics.json of evaluate in the folder, or one of an earlier version."""
        folder = Path(folder)
        try:
            saved = json.loads((folder / "metrics.json").read_text())
            if saved["sets"].keys() != saved.get("settings", {}).keys():
                raise InputError(
                    f"{folder}/metrics.json: written by an earlier version; run evaluate again (it keeps its predictions)"
                )
            return cls(folder, saved["model"], saved["sets"], saved["protocols"], saved["settings"])
        except (FileNotFoundError, NotADirectoryError):
            raise InputError(f"{folder}: no metrics.json in it; want a folder that evaluate wrote") from None
        except (ValueError, KeyError, TypeError, AttributeError):
            raise InputError(f"{folder}/metrics.json: not what evaluate writes") from None

    def evidence(self, name: str) -> Evidence:
        """What a set's metrics rest on."""
        return read_evidence(self.folder / "evidence", name)

    def lacking(self, other: Evaluated) -> dict[str, dict[str, Any]]:
        """set -> protocol and metrics of ours that another does not have; ODinW's mean is lacking if one of its sets is."""
        lacking: dict[str, dict[str, Any]] = {}
        for name, metrics in self.sets.items():
            missing = sorted((m for m in metrics if m not in COUNTS and m not in other.sets.get(name, {})), key=place)
            if missing:
                lacking[name] = {"protocol": self.protocols[name], "metrics": missing, "whole": name not in other.sets}
        if any(one["protocol"] == MEAN for one in lacking.values()):
            lacking[MEAN_SET] = {"protocol": "mean", "metrics": ["ap"], "whole": False}
        return lacking


def compare(folders: Sequence[str | Path], *, samples: int = 1000, seed: int = 0) -> dict[str, Any]:
    """Metrics of all sets that the folders share, with 95 % intervals over resampled images.

    Every model is resampled with the same images, so that a difference is taken image for image.

    Returns:
        ``models``: folder and revision of each; ``sets``: set -> metric -> for each model ``value`` and ``interval``, and for all
        but the first ``difference`` from the first, its ``difference_interval``, and ``better``: the share of resamples in
        which it is above; ``lacking``: of the first's metrics, what each other does not have (:meth:`Evaluated.lacking`);
        ``unlike``: set -> setting -> each model's value, where they were measured by other settings.

    Raises:
        InputError: no set in common, or one that was evaluated on different shards or by different protocols.
    """
    models = [Evaluated.read(folder) for folder in folders]
    names = [n for n in models[0].sets if all(n in m.sets for m in models)]
    if not names:
        told = "; ".join(f"{m.folder} has {', '.join(sorted(m.sets)) or 'none'}" for m in models)
        raise InputError(f"no evaluation set in common: {told}")
    sets: dict[str, Rows] = {}
    means: list[np.ndarray] = []
    protocols: dict[str, str] = {}
    for name in names:
        sets[name], protocols[name], drawn = _compare_set(name, models, samples, seed)
        if protocols[name] == MEAN:
            means.append(np.stack([d["ap"] for d in drawn]))
    if means:
        values = [float(np.mean([m.sets[n]["ap"] for n in names if protocols[n] == MEAN])) for m in models]
        sets[MEAN_SET] = {"ap": _cells(values, list(np.mean(means, axis=0)))}
        protocols[MEAN_SET] = "mean"
    return {
        "models": [{"folder": str(m.folder), "model": m.model} for m in models],
        "samples": samples,
        "seed": seed,
        "protocols": protocols,
        "sets": sets,
        "lacking": [models[0].lacking(m) for m in models[1:]],
        "unlike": {name: differing for name in names if (differing := _unlike([m.settings[name] for m in models]))},
    }


def _unlike(settings: Sequence[dict[str, Any]]) -> dict[str, list[Any]]:
    keys = sorted({key for one in settings for key in one})
    values = {key: [one.get(key) for one in settings] for key in keys}
    return {key: mine for key, mine in values.items() if any(v != mine[0] for v in mine)}


def _compare_set(
    name: str, models: Sequence[Evaluated], samples: int, seed: int
) -> tuple[Rows, str, list[dict[str, np.ndarray]]]:
    """(rows, protocol, each model's resampled metrics)."""
    evidence = [m.evidence(name) for m in models]
    first = evidence[0]
    for model, one in zip(models[1:], evidence[1:], strict=True):
        if (one.gold, one.protocol, one.names) != (first.gold, first.protocol, first.names):
            raise InputError(
                f"set {name}: {models[0].folder} and {model.folder} were evaluated on different shards or by different "
                f"protocols ({first.protocol}, {one.protocol}); evaluate both on the same"
            )
    weights = draw_weights(first.matches.images, samples, seed, name)
    drawn = [{metric: estimate(weights) for metric, estimate in estimates(one).items()} for one in evidence]
    rows = {
        metric: _cells([m.sets[name][metric] for m in models], [d.get(metric) for d in drawn])
        for metric in sorted(models[0].sets[name], key=place)
        if metric not in COUNTS and all(metric in m.sets[name] for m in models)
    }
    return rows, first.protocol, drawn


def _cells(values: Sequence[float], drawn: Sequence[np.ndarray | None]) -> list[dict[str, Any]]:
    """A metric of each model; ``drawn``: the metric itself and its resamples, None if it is not resampled."""
    cells: list[dict[str, Any]] = [{"value": v} for v in values]
    for i, (cell, mine) in enumerate(zip(cells, drawn, strict=True)):
        if mine is not None:
            low, high = interval(centred(mine))  # moved as a whole, it may reach beyond what a share can be
            cell["interval"] = max(0.0, low), min(100.0, high)
        if i:
            cell["difference"] = values[i] - values[0]
            if mine is not None and drawn[0] is not None:
                moved = centred(mine - drawn[0])
                cell["difference_interval"] = interval(moved)
                cell["better"] = float(np.mean(moved > 0))
    return cells


def compare_lines(compared: dict[str, Any]) -> list[str]:
    """The comparison as Markdown's tables, a set each."""
    lines = [f"{chr(65 + i)} = {m['folder']} ({m['model']})" for i, m in enumerate(compared["models"])]
    letters = [chr(65 + i) for i in range(len(compared["models"]))]
    lines += ["", f"95 % intervals of {compared['samples']} resamples of the images."]
    for name, rows in compared["sets"].items():
        heads = [c for i, letter in enumerate(letters) for c in ([letter, f"{letter} - A"] if i else [letter])]
        lines += ["", f"## {name}", "", f"| Metric | {' | '.join(heads)} |", "|---" * (1 + len(heads)) + "|"]
        for metric, cells in rows.items():
            texts = []
            for i, cell in enumerate(cells):
                texts.append(f"{cell['value']:.1f}" + span_words(cell.get("interval")))
                if i:
                    texts.append(f"{cell['difference']:+.1f}" + span_words(cell.get("difference_interval"), "+"))
            lines.append(f"| {TITLES.get(metric, metric)} | {' | '.join(texts)} |")
    told = [
        f"- {letter} has no {lacking_words(one)}"
        for letter, one in zip(letters[1:], compared["lacking"], strict=True)
        if one
    ]
    told += [
        f"- {name} was measured by other settings: {key} {', '.join(f'{v} ({n})' for n, v in zip(letters, values, strict=True))}"
        for name, settings in compared["unlike"].items()
        for key, values in settings.items()
    ]
    return [*lines, "", *told] if told else lines


def lacking_words(lacking: Mapping[str, Mapping[str, Any]]) -> str:
    """ "lvis, coco.ap_rare": sets that are lacking whole, and metrics of others."""
    words = [
        [name] if one["whole"] else [f"{name}.{metric}" for metric in one["metrics"]] for name, one in lacking.items()
    ]
    return ", ".join(word for some in words for word in some)


def span_words(interval: tuple[float, float] | None, sign: str = "") -> str:
    """ " (1.2 to 3.4)", or nothing; with the sign "+" as differences."""
    return "" if interval is None else f" ({interval[0]:{sign}.1f} to {interval[1]:{sign}.1f})"
