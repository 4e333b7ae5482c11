"""Verdicts applied to the label rows of one image (docs/verdicts.md)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pipeline.data.records import Box
from pipeline.data.verdicts import KINDS, Verdict
from pipeline.filtering.nms import pair_iou
from pipeline.filtering.store import BOX
from pipeline.filtering.verdicts import SAME_IOU

Row = Mapping[str, Any]
Phrase = int | str


def phrase_id(row: Row) -> Phrase:
    """The phrase of a row of labels: its class name, or else its row in the phrases file."""
    phrase: Phrase = row["name"] if "name" in row else row["phrase_row"]
    return phrase


@dataclass
class RevisedRows:
    """Label rows after the verdicts.

    Attributes:
        rows: of the labels; those that a person drew or mended have the person as ``annotator``, and
            those that a person accepted no score.
        absent: phrases that a person found absent, and that have no row. A phrase is a
            ``phrase_row``, or of class names the name.
        unsure: phrases that are neither present nor absent.
        counts: labels that were ``accepted``, ``rejected``, ``fixed``, ``added`` or made ``unsure``.
        unknown: verdicts of phrases that the image does not have.
    """

    rows: list[Row]
    absent: set[Phrase] = field(default_factory=set)
    unsure: set[Phrase] = field(default_factory=set)
    counts: Counter[str] = field(default_factory=Counter)
    unknown: list[Verdict] = field(default_factory=list)

    def take(self, phrase: Phrase, box: Box) -> Row | None:
        """Remove and return the phrase's row that the verdict's box is of; None if there is none."""
        found = [i for i, row in enumerate(self.rows) if phrase_id(row) == phrase]
        if not found:
            return None
        boxes = np.array([[self.rows[i][c] for c in BOX] for i in found], np.float64)
        overlap = pair_iou(boxes, np.tile(np.asarray(box, np.float64), (len(found), 1)))
        best = int(np.argmax(np.nan_to_num(overlap)))
        return self.rows.pop(found[best]) if overlap[best] >= SAME_IOU else None


def revise(rows: Iterable[Row], verdicts: Sequence[Verdict], phrase_of: Callable[[Verdict], Row | None]) -> RevisedRows:
    """Apply the verdicts of an image to its label rows.

    An accepted region is a label also where a rule dropped it; the box of a fixed one is replaced;
    missing ones are added; a rejected region goes, and its phrase is absent if a person rejected it
    and no other row is left. An unsure one becomes an ignore region. What a verdict says of a phrase
    goes for the regions that have none of their own.

    Args:
        phrase_of: gives the ``phrase_row``, and further columns of a new row, of a verdict's phrase; None if the
            image has no such phrase.
    """
    result, own = RevisedRows(list(rows)), list[Row]()
    rejected: dict[str, set[Phrase]] = {kind: set() for kind in KINDS}

    def add(verdict: Verdict, columns: Row, box: Box, **values: Any) -> None:
        size = {"key": verdict.key, "height": verdict.height, "width": verdict.width}
        corners = dict(zip(BOX, box, strict=True))
        own.append({**columns, **size, **corners, "status": "keep", "score": None, "annotator": verdict.by} | values)

    # regions first: what is said of the whole phrase then finds the rows that are left
    for verdict in sorted(verdicts, key=lambda v: v.box is None):
        columns = phrase_of(verdict)
        if columns is None:
            result.unknown.append(verdict)
            continue
        phrase, decision = phrase_id(columns), verdict.verdict
        row = None if verdict.box is None else result.take(phrase, verdict.box)
        left = [r for r in result.rows if phrase_id(r) == phrase] if verdict.box is None else []
        if decision == "reject":
            result.rows = [r for r in result.rows if r not in left]
            result.counts["rejected"] += len(left) + (row is not None)
            rejected[verdict.kind].add(phrase)
        elif decision == "unsure":
            result.rows = [{**r, "status": "ignore"} if r in left else r for r in result.rows]
            own += [] if row is None else [{**row, "status": "ignore"}]
            result.unsure |= {phrase} if verdict.box is None else set()
            result.counts["unsure"] += len(left) + (row is not None)
        elif decision == "accept" and verdict.box is not None:
            # the teacher's label, without the doubt that its score was
            of_teacher = {} if row is None else {**row, "status": "keep", "score": None, "annotator": None}
            add(verdict, columns, verdict.box, **of_teacher)
            result.counts["accepted"] += 1
        for box in verdict.boxes:
            add(verdict, columns, box)
            result.counts["fixed" if decision == "fixed" else "added"] += 1
    result.rows += own
    gone = {kind: phrases - set(map(phrase_id, result.rows)) for kind, phrases in rejected.items()}
    result.absent = gone["person"] - result.unsure
    result.unsure |= gone["machine"] - result.absent
    return result
