"""The published rules by name. Imports nothing: the settings module reads it."""

from __future__ import annotations

from typing import Any

PRESETS: dict[str, dict[str, Any]] = {
    # GLIP, section 3.3: "78.1M high-confidence (> 0.5) phrase-box pseudo annotations"
    "glip": {},
    # OWL-ST (Scaling Open-Vocabulary Object Detection), 4.4: boxes above 0.1 in images with one above 0.3; 3.1: a box keeps
    # the one query that scores highest. The paper's boxes are the same for all queries; a grounding teacher's nearly so.
    "owl_st": {"threshold": 0.1, "include_equal": True, "near_identical_iou": 0.95, "image_threshold": 0.3},
    # GRIT (Kosmos-2), 3: NMS even between boxes of different noun chunks, then scores above 0.65, then images with a box.
    # The paper gives no IoU; 0.6 is GLIP's own for NMS.
    "grit": {"threshold": 0.65, "cross_phrase_iou": 0.6},
    # YOLO-World, appendix B (4) to (6): sqrt(confidence x region-text similarity), NMS per text at 0.5, scores above 0.3,
    # then images whose mean region-text score is above 0.3. The paper multiplies that mean by an image-text similarity,
    # which the store does not hold.
    "yolo_world": {"score_by": "geometric", "threshold": 0.3, "same_text_iou": 0.5, "min_image_score": 0.3},
}
"""Name -> the settings of FilterConfig that differ from their defaults, which are GLIP's."""
