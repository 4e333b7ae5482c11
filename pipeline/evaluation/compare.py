"""Compares metrics of several evaluation folders, with intervals of their paired differences."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import InputError
from pipeline.evaluation.bootstrap import centred, draw_weights, interval, resample
from pipeline.evaluation.match_tables import MatchTables, read_match_tables
from pipeline.evaluation.report import COUNTS, TITLES, metric_order

Rows = dict[str, list[dict[str, Any]]]
"""Metric -> a cell for each model."""
MEAN = "odinw"
CHANGES = 5
"""Number of classes whose AP fell or rose most that are listed."""
MEAN_SET = f"mean of {MEAN}"
"""Name of the mean over the sets of this protocol."""


@dataclass(frozen=True)
class Evaluated:
    """An evaluation folder: its metrics, protocols and settings by set.

    model: revision. sets: without undefined metrics. classes: set -> class name -> AP in percent.
    """

    folder: Path
    model: str
    sets: dict[str, dict[str, float]]
    protocols: dict[str, str]
    settings: dict[str, dict[str, Any]]
    classes: dict[str, dict[str, float]]
    _tables: dict[str, MatchTables] = field(default_factory=dict, repr=False)
    _resampled: dict[tuple[str, int, int], dict[str, np.ndarray]] = field(default_factory=dict, repr=False)

    @classmethod
    def read(cls, folder: str | Path | Evaluated) -> Evaluated:
        """Read a folder; one that was read already is returned.

        Raises:
            InputError: no metrics.json of evaluate in the folder, or one of an earlier version.
        """
        if isinstance(folder, Evaluated):
            return folder
        folder = Path(folder)
        try:
            saved = json.loads((folder / "metrics.json").read_text())
            if saved["sets"].keys() != saved.get("settings", {}).keys():
                raise InputError(
                    f"{folder}/metrics.json: written by an earlier version; run evaluate again (it keeps predictions)"
                )
            sets = {n: {k: v for k, v in metrics.items() if v is not None} for n, metrics in saved["sets"].items()}
            return cls(folder, saved["model"], sets, saved["protocols"], saved["settings"], saved.get("classes", {}))
        except (FileNotFoundError, NotADirectoryError):
            raise InputError(f"{folder}: no metrics.json in it; want a folder that evaluate wrote") from None
        except (ValueError, KeyError, TypeError, AttributeError):
            raise InputError(f"{folder}/metrics.json: not what evaluate writes") from None

    def match_tables(self, name: str) -> MatchTables:
        """The match tables of a set."""
        if name not in self._tables:
            self._tables[name] = read_match_tables(self.folder / "evidence", name)
        return self._tables[name]

    def resampled(self, name: str, samples: int, seed: int) -> dict[str, np.ndarray]:
        """Metric -> its values in the set and its resamples, which depend on set, samples and seed alone."""
        key = name, samples, seed
        if key not in self._resampled:
            tables = self.match_tables(name)
            self._resampled[key] = resample(tables, draw_weights(tables.matches.images, samples, seed, name))
        return self._resampled[key]

    def missing_from(self, other: Evaluated) -> dict[str, dict[str, Any]]:
        """Set -> ``protocol`` and ``metrics`` that are missing in ``other``; ``whole``: the set is.

        The mean of ODinW is missing if one of its sets is.
        """
        missing: dict[str, dict[str, Any]] = {}
        for name, metrics in self.sets.items():
            new = [m for m in sorted(metrics, key=metric_order) if m not in {*COUNTS, *other.sets.get(name, ())}]
            if new:
                missing[name] = {"protocol": self.protocols[name], "metrics": new, "whole": name not in other.sets}
        if any(one["protocol"] == MEAN for one in missing.values()):
            missing[MEAN_SET] = {"protocol": "mean", "metrics": ["ap"], "whole": False}
        return missing


def compare(folders: Sequence[str | Path | Evaluated], *, samples: int = 1000, seed: int = 0) -> dict[str, Any]:
    """Metrics of the sets that the folders share, with 95 % intervals over resampled images.

    Every model is resampled with the same images, so that differences are paired.

    Returns:
        ``models``: folder and revision of each. ``sets``: set -> metric -> by model ``value``,
        ``interval`` (of two images or more) and, except for the first, ``difference`` from the first, its
        ``difference_interval`` and ``better``, the share of resamples in which it is positive.
        ``gold_boxes``: set -> their number.
        ``classes``: set -> class name -> each model's AP.
        ``lacking``: for all but the first, :meth:`Evaluated.missing_from`. ``unlike``: set ->
        setting -> each model's value, where they differ.

    Raises:
        InputError: no set in common, or its shards or protocols differ.
    """
    models = [Evaluated.read(folder) for folder in folders]
    names = [n for n in models[0].sets if all(n in m.sets for m in models)]
    if not names:
        available = "; ".join(f"{m.folder} has {', '.join(sorted(m.sets)) or 'none'}" for m in models)
        raise InputError(f"no evaluation set in common: {available}")
    sets: dict[str, Rows] = {}
    means: list[np.ndarray] = []
    protocols: dict[str, str] = {}
    gold_boxes: dict[str, int] = {}
    for name in names:
        sets[name], protocols[name], resampled, gold_boxes[name] = _compare_set(name, models, samples, seed)
        if protocols[name] == MEAN and "ap" in sets[name]:
            means.append(np.stack([r["ap"] for r in resampled]))
    if means:
        defined = [n for n in names if protocols[n] == MEAN and "ap" in sets[n]]
        values = [float(np.mean([m.sets[n]["ap"] for n in defined])) for m in models]
        sets[MEAN_SET] = {"ap": _cells(values, list(np.mean(means, axis=0)))}
        protocols[MEAN_SET] = "mean"
    return {
        "models": [{"folder": str(m.folder), "model": m.model} for m in models],
        "samples": samples,
        "seed": seed,
        "protocols": protocols,
        "gold_boxes": gold_boxes,
        "sets": sets,
        "classes": {
            name: {c: [m.classes[name][c] for m in models] for c in models[0].classes[name]}
            for name in names
            if all(name in m.classes for m in models)  # written by this version
        },
        "lacking": [models[0].missing_from(m) for m in models[1:]],
        "unlike": {name: differing for name in names if (differing := _differing([m.settings[name] for m in models]))},
    }


def _differing(settings: Sequence[dict[str, Any]]) -> dict[str, list[Any]]:
    keys = sorted({key for one in settings for key in one})
    values = {key: [one.get(key) for one in settings] for key in keys}
    return {key: row for key, row in values.items() if any(v != row[0] for v in row)}


def _compare_set(
    name: str, models: Sequence[Evaluated], samples: int, seed: int
) -> tuple[Rows, str, list[dict[str, np.ndarray]], int]:
    """(rows, protocol, each model's resampled metrics, number of gold boxes)."""
    tables = [m.match_tables(name) for m in models]
    first = tables[0]
    for model, one in zip(models[1:], tables[1:], strict=True):
        if (one.gold, one.protocol, one.names) != (first.gold, first.protocol, first.names):
            raise InputError(
                f"set {name}: {models[0].folder} and {model.folder} were evaluated on different shards or by different "
                f"protocols ({first.protocol}, {one.protocol}); evaluate both on the same"
            )
    resampled = [model.resampled(name, samples, seed) for model in models]
    several = first.matches.images > 1  # resamples of one image are all alike, and say nothing of its chance
    rows = {
        metric: _cells([m.sets[name][metric] for m in models], [r.get(metric) if several else None for r in resampled])
        for metric in sorted(models[0].sets[name], key=metric_order)
        if metric not in COUNTS and all(metric in m.sets[name] for m in models)
    }
    return rows, first.protocol, resampled, len(first.matches.gold_image)


def _cells(values: Sequence[float], resampled: Sequence[np.ndarray | None]) -> list[dict[str, Any]]:
    """A metric of each model; ``resampled``: of the set and its resamples, None if impossible."""
    cells: list[dict[str, Any]] = [{"value": v} for v in values]
    for i, (cell, samples) in enumerate(zip(cells, resampled, strict=True)):
        if samples is not None:
            low, high = interval(centred(samples))  # the shift may move it out of 0..100
            cell["interval"] = max(0.0, low), min(100.0, high)
        if i:
            cell["difference"] = values[i] - values[0]
            if samples is not None and resampled[0] is not None:
                differences = centred(samples - resampled[0])
                cell["difference_interval"] = interval(differences)
                cell["better"] = float(np.mean(differences > 0))
    return cells


def compare_lines(compared: dict[str, Any]) -> list[str]:
    """The comparison as Markdown, with a table for each set."""
    lines = [f"{chr(65 + i)} = {m['folder']} ({m['model']})" for i, m in enumerate(compared["models"])]
    letters = [chr(65 + i) for i in range(len(compared["models"]))]
    lines += ["", f"95 % intervals of {compared['samples']} resamples of the images."]
    for name, rows in compared["sets"].items():
        heads = [c for i, letter in enumerate(letters) for c in ([letter, f"{letter} - A"] if i else [letter])]
        lines += ["", f"## {name}", "", f"| Metric | {' | '.join(heads)} |", "|---" * (1 + len(heads)) + "|"]
        for metric, cells in rows.items():
            texts = []
            for i, cell in enumerate(cells):
                texts.append(f"{cell['value']:.1f}" + format_interval(cell.get("interval")))
                if i:
                    texts.append(f"{cell['difference']:+.1f}" + format_interval(cell.get("difference_interval"), "+"))
            lines.append(f"| {TITLES.get(metric, metric)} | {' | '.join(texts)} |")
        lines += _changed_classes(compared["classes"].get(name, {}))
    notes = [
        f"- {letter} has no {format_missing(one)}"
        for letter, one in zip(letters[1:], compared["lacking"], strict=True)
        if one
    ]
    for name, settings in compared["unlike"].items():
        for key, values in settings.items():
            by_model = ", ".join(f"{v} ({letter})" for letter, v in zip(letters, values, strict=True))
            notes.append(f"- {name} was measured with different settings: {key} {by_model}")
    return [*lines, "", *notes] if notes else lines


def _changed_classes(classes: Mapping[str, Sequence[float]]) -> list[str]:
    """AP of the classes that changed most from the first model to the last."""
    changes = sorted((values[-1] - values[0], name) for name, values in classes.items())
    lines = []
    for title, ones in (("fell", changes[:CHANGES]), ("rose", changes[::-1][:CHANGES])):
        texts = [
            f"{name} {' -> '.join(f'{v:.1f}' for v in classes[name])}"
            for change, name in ones
            if (change < 0) == (title == "fell") and change
        ]
        lines += ["", f"AP {title} most: {', '.join(texts)}."] if texts else []
    return lines


def format_missing(missing: Mapping[str, Mapping[str, Any]]) -> str:
    """Missing sets and metrics (:meth:`Evaluated.missing_from`), as in "lvis, coco.ap_rare"."""
    return ", ".join(
        text
        for name, one in missing.items()
        for text in ([name] if one["whole"] else [f"{name}.{metric}" for metric in one["metrics"]])
    )


def format_interval(interval: tuple[float, float] | None, sign: str = "") -> str:
    """The interval as in " (1.2 to 3.4)", "" for None; ``sign`` "+" also marks positive values."""
    return "" if interval is None else f" ({interval[0]:{sign}.1f} to {interval[1]:{sign}.1f})"
