"""A page of labelled images: boxes drawn, phrases marked in their captions. One file, no network."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from pipeline.data.records import GroundingRecord
from pipeline.drawing.boxes import Colour, draw_regions, phrase_colours, pick
from pipeline.io.atomic import write_atomic
from pipeline.report.templates import render

Piece = tuple[str, Colour | None, bool]
"""Text of a caption, the colour of the phrase it belongs to, and whether it is an uncertain phrase."""


def write_gallery(
    shards: Sequence[str], out: str | Path, *, limit: int = 24, title: str, note: str = "", width: int = 360
) -> int:
    """Draw up to ``limit`` records of training shards into one HTML page; returns how many."""
    items = [figure(image, record, width) for image, record in pick(shards, limit)]
    write_atomic(out, render("gallery.html", title=title, note=note, items=items))
    return len(items)


def figure(image: Image.Image, record: GroundingRecord, width: int) -> dict[str, Any]:
    """What figures.html shows of an image: drawn ``width`` pixels wide, its caption in pieces, its regions by name."""
    return {
        "key": record.key,
        "image": data_url(draw_regions(image, record, width=width)),
        "caption": caption_pieces(record),
        "regions": [r for r in record.regions if not r.ignore],
    }


def data_url(image: Image.Image) -> str:
    """The image as a JPEG inside a URL."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=88)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def caption_pieces(record: GroundingRecord) -> list[Piece]:
    """The caption cut at its phrases' spans; where phrases overlap the first one named has the characters."""
    caption = record.caption or ""
    owner: list[tuple[Colour | None, bool]] = [(None, False)] * len(caption)
    colours = phrase_colours(record)
    for start, end in record.uncertain:
        owner[start:end] = [(None, True)] * (end - start)
    for region in reversed([r for r in record.regions if not r.ignore]):
        for start, end in region.tokens_positive:
            owner[start:end] = [(colours[region.phrase], False)] * (end - start)
    pieces: list[Piece] = []
    for character, mark in zip(caption, owner, strict=True):
        if pieces and pieces[-1][1:] == mark:
            pieces[-1] = (pieces[-1][0] + character, *mark)
        else:
            pieces.append((character, *mark))
    return pieces
