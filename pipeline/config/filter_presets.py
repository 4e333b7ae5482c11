"""Published filtering rules as presets of FilterConfig."""

from __future__ import annotations

from typing import Any

PRESETS: dict[str, dict[str, Any]] = {
    # GLIP, section 3.3: "78.1M high-confidence (> 0.5) phrase-box pseudo annotations"
    "glip": {},
    # OWL-ST (Scaling Open-Vocabulary Object Detection), 4.4: boxes above 0.1 in images with one above 0.3; 3.1: a box
    # keeps only its highest-scoring query. In the paper all queries share their boxes; with a grounding teacher, the
    # boxes of different phrases are nearly identical.
    "owl_st": {"threshold": 0.1, "include_equal": True, "near_identical_iou": 0.95, "image_threshold": 0.3},
    # GRIT (Kosmos-2), 3: NMS also between boxes of different noun chunks, then scores above 0.65, then images with a
    # box. The paper states no IoU threshold; 0.6 is GLIP's for NMS.
    "grit": {"threshold": 0.65, "cross_phrase_iou": 0.6},
    # YOLO-World, appendix B (4) to (6): sqrt(confidence x region-text similarity), NMS per text at 0.5, scores above
    # 0.3, then images whose mean region-text score is above 0.3. The paper multiplies this mean by an image-text
    # similarity, which the label store does not have.
    "yolo_world": {"score_by": "geometric", "threshold": 0.3, "same_text_iou": 0.5, "min_image_score": 0.3},
}
"""Preset -> settings of FilterConfig that differ from the defaults, which are GLIP's."""
