"""Zero-shot detection of a set's class names, through the same annotator that labels, against gold boxes."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.annotators.base import Annotations, Annotator, ask, load_annotator
from pipeline.config import EvaluateConfig, PseudoLabelConfig
from pipeline.errors import InputError
from pipeline.evaluation.metrics import ImageResult, coco_ap, recall_at_k
from pipeline.images import open_image
from pipeline.io.commit import write_json
from pipeline.io.hashing import digest_file, fingerprint, model_revision
from pipeline.progress import Progress, Silent
from pipeline.records import GroundingRecord
from pipeline.training.shards import ShardSet, read_label_spaces

log = logging.getLogger("glip_self_train")
VERSION = 1
SEPARATOR = ". "


def run(
    config: EvaluateConfig,
    model: str,
    shards: Mapping[str, Sequence[str]],
    out: str | Path,
    *,
    device: str = "cpu",
    progress: Progress | None = None,
) -> dict[str, dict[str, float]]:
    """Evaluate a model folder on sets of shards; writes ``metrics.json`` and ``predictions-<set>.json`` (COCO format).

    Every image is asked for all names of its set's label space, in as many prompts as the text limit needs. AP is
    pycocotools'. Recall@k asks only for names that are there: is one of the k best boxes for the name right?

    Returns:
        set name -> ``images``, ``queries``, ``recall_at_1/5/10``, ``ap``, ``ap50``, ``ap75``; percents.
    """
    out = Path(out)
    progress = progress or Silent()
    mark = fingerprint(
        "evaluate",
        version=VERSION,
        config=config,
        inputs={f"{n}/{Path(s).name}": digest_file(s) for n, paths in sorted(shards.items()) for s in paths},
        model=model_revision(model),
    )
    metrics_file = out / "metrics.json"
    if metrics_file.is_file():
        saved = json.loads(metrics_file.read_text())
        if saved.get("fingerprint") == mark:
            return saved["sets"]
    annotator = load_annotator(
        model,
        PseudoLabelConfig(
            floor=config.threshold,
            score_agg=config.score_agg,
            max_regions_per_phrase=config.max_detections,
            image_size=config.image_size,
            max_image_size=config.max_image_size,
        ),
        device,
    )
    sets: dict[str, dict[str, float]] = {}
    for name, paths in sorted(shards.items()):
        names, results, ids = _detect(name, ShardSet(paths), read_label_spaces(paths), annotator, config, progress)
        sets[name] = {
            "images": len(results),
            **recall_at_k(results),
            **coco_ap(results, names, config.max_detections),
        }
        write_json(out / f"predictions-{name}.json", _coco_results(results, ids))
        log.info("%s: %s", name, ", ".join(f"{k} {v:.1f}" for k, v in sets[name].items()))
    write_json(metrics_file, {"fingerprint": mark, "model": annotator.revision, "sets": sets})
    return sets


def _detect(
    set_name: str,
    records: ShardSet,
    spaces: Mapping[str, Sequence[str]],
    annotator: Annotator,
    config: EvaluateConfig,
    progress: Progress,
) -> tuple[Sequence[str], list[ImageResult], list[str]]:
    places = [(s, r) for s, n in enumerate(records.counts) for r in range(n)]
    if not places:
        raise InputError(f"evaluation set {set_name}: its shards hold no records")
    first = records.record(*places[0])
    if first.dataset not in spaces:
        raise InputError(f"evaluation set {set_name}: no label space for {first.dataset} beside its shards")
    names = spaces[first.dataset]
    questions = annotator.class_questions(names)
    progress.begin(f"evaluate {set_name}", len(places), unit="images")
    results, ids = [], []
    for start in range(0, len(places), config.batch_size):
        part = places[start : start + config.batch_size]
        batch = [records.record(*p) for p in part]
        images = [open_image(records.image(*p)) for p in part]
        answers = [ask(annotator, images, [question] * len(batch)) for question in questions]
        for record, *parts in zip(batch, *answers, strict=True):
            results.append(_result(record, names, Annotations.joined(parts), config.max_detections))
            ids.append(record.key)
        progress.advance(len(part), "images")
    return names, results, ids


def _result(record: GroundingRecord, names: Sequence[str], found: Annotations, limit: int) -> ImageResult:
    index = {n: i for i, n in enumerate(names)}
    best = np.argsort(-found.score, kind="stable")[: max(limit, 10 * len(names))]
    return ImageResult(
        size=record.image_size,
        gold_boxes=np.array([r.box for r in record.regions], np.float64).reshape(-1, 4),
        gold_labels=np.array([index[r.phrase] for r in record.regions], np.int64),
        gold_ignore=np.array([r.ignore for r in record.regions], bool),
        boxes=found.boxes[best].reshape(-1, 4).astype(np.float64),
        labels=found.phrase[best],
        scores=found.score[best],
    )


def _coco_results(results: Sequence[ImageResult], keys: Sequence[str]) -> list[dict[str, Any]]:
    return [
        {
            "image_id": key,
            "category_id": int(label) + 1,
            "bbox": [round(float(v), 2) for v in (b[0], b[1], b[2] - b[0], b[3] - b[1])],
            "score": round(float(score), 5),
        }
        for key, result in zip(keys, results, strict=True)
        for b, label, score in zip(result.boxes, result.labels, result.scores, strict=True)
    ]
