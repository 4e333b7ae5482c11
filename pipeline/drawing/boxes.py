"""Drawing of regions and their phrases on images."""

from __future__ import annotations

import colorsys
import io
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from pipeline.data.images import open_image
from pipeline.data.records import Box, GroundingRecord, Region
from pipeline.data.training_shards import ShardSet
from pipeline.io.atomic import write_atomic

Colour = tuple[int, int, int]
CONTRAST = 4.5
"""Minimum contrast of text (WCAG 2.2, level AA)."""


def phrase_colours(phrases: Iterable[str]) -> dict[str, Colour]:
    """Colour of each distinct phrase, in order; neighbours have distinct hues.

    White text on a colour has a contrast of at least CONTRAST.
    """
    colours: dict[str, Colour] = {}
    for number, phrase in enumerate(dict.fromkeys(phrases)):
        hue, value = (0.58 + number * 0.382) % 1.0, 0.78
        while contrast_with_white(colour := _rgb(hue, value)) < CONTRAST:
            value -= 0.02
        colours[phrase] = colour
    return colours


def _rgb(hue: float, value: float) -> Colour:
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.9, value)
    return int(red * 255), int(green * 255), int(blue * 255)


def contrast_with_white(colour: Colour) -> float:
    """Contrast ratio of a colour with white, 1 to 21 (WCAG 2.2, 1.4.3)."""
    channels = (c / 255 for c in colour)
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 1.05 / (0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2] + 0.05)


def labelled(record: GroundingRecord) -> list[Region]:
    """Regions that are not ignored."""
    return [region for region in record.regions if not region.ignore]


def draw_regions(image: Image.Image, record: GroundingRecord, *, width: int) -> Image.Image:
    """Resize an image to ``width`` pixels and draw its regions with their phrases; ignore regions
    are thin and grey.
    """
    scale = width / image.width
    canvas = image.convert("RGB").resize((width, max(1, round(image.height * scale))), Image.Resampling.LANCZOS)
    draw = ImageDraw.Draw(canvas)
    colours = phrase_colours(r.phrase for r in labelled(record))
    line = max(2, width // 160)
    font = ImageFont.load_default(size=max(11, width // 26))
    for region in record.regions:
        if region.ignore:
            draw.rectangle(_scaled(region.box, scale, canvas, 1), outline=(128, 128, 128), width=1)
    for region in labelled(record):
        draw.rectangle(_scaled(region.box, scale, canvas, line), outline=colours[region.phrase], width=line)
    for region in labelled(record):  # phrases last, so that boxes do not cover them
        _draw_phrase(draw, region, _scaled(region.box, scale, canvas, line), colours[region.phrase], font, canvas.size)
    return canvas


def outline_boxes(image: Image.Image, boxes: Iterable[Box], colour: Colour) -> Image.Image:
    """Copy an image and draw the outlines of boxes, xyxy in its pixels, around what is in them."""
    canvas = image.copy()
    draw, line = ImageDraw.Draw(canvas), max(2, max(canvas.size) // 160)
    for x1, y1, x2, y2 in boxes:
        around = _scaled((x1 - line, y1 - line, x2 + line, y2 + line), 1, canvas, line)
        draw.rectangle(around, outline=colour, width=line)
    return canvas


def _scaled(box: Box, scale: float, canvas: Image.Image, line: int) -> tuple[float, float, float, float]:
    """Box in pixels of the canvas, inside it and at least ``line`` pixels wide and high."""
    x1, y1, x2, y2 = (v * scale for v in box)
    right, bottom = canvas.width - 1, canvas.height - 1
    x1, y1 = max(0, min(x1, right - line)), max(0, min(y1, bottom - line))
    return x1, y1, min(right, max(x2, x1 + line)), min(bottom, max(y2, y1 + line))


def _draw_phrase(
    draw: ImageDraw.ImageDraw,
    region: Region,
    box: tuple[float, float, float, float],
    colour: Colour,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    size: tuple[int, int],
) -> None:
    text = region.phrase if region.score is None else f"{region.phrase} {region.score:.2f}"
    left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
    wide, high = right - left + 6, bottom - top + 4
    x = min(max(0, box[0]), max(0, size[0] - wide))
    y = box[1] - high if box[1] >= high else min(box[3], size[1] - high)
    draw.rectangle((x, y, x + wide, y + high), fill=colour)
    draw.text((x + 3 - left, y + 2 - top), text, fill="white", font=font)


def pick(shards: Sequence[str], limit: int) -> list[tuple[Image.Image, GroundingRecord]]:
    """Choose up to ``limit`` evenly spaced records with labelled regions, and their images."""
    records = ShardSet(shards)
    rows = [(s, r) for s, n in enumerate(records.counts) for r in range(n)]
    picked: list[tuple[Image.Image, GroundingRecord]] = []
    for shard, row in rows[:: max(1, len(rows) // max(limit, 1))]:
        record = records.record(shard, row)
        if labelled(record):
            picked.append((open_image(records.image(shard, row)), record))
        if len(picked) == limit:
            break
    return picked


def write_montage(
    shards: Sequence[str], out: str | Path, *, limit: int = 8, columns: int = 4, width: int = 288
) -> None:
    """Write a PNG of drawn records in rows of ``columns``, each with its caption below; none
    without records.
    """
    tiles = [_tile(image, record, width) for image, record in pick(shards, limit)]
    if not tiles:
        return
    gap = 10
    rows = [tiles[i : i + columns] for i in range(0, len(tiles), columns)]
    heights = [max(t.height for t in row) for row in rows]
    sheet = Image.new("RGB", (columns * (width + gap) + gap, sum(heights) + gap * (len(rows) + 1)), "white")
    y = gap
    for row, height in zip(rows, heights, strict=True):
        for i, tile in enumerate(row):
            sheet.paste(tile, (gap + i * (width + gap), y))
        y += height + gap
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    write_atomic(out, buffer.getvalue())


def _tile(image: Image.Image, record: GroundingRecord, width: int) -> Image.Image:
    drawn = draw_regions(image, record, width=width)
    font = ImageFont.load_default(size=13)
    lines = textwrap.wrap(record.caption or "", width=max(10, width // 7))[:3] or [""]
    tile = Image.new("RGB", (width, drawn.height + 4 + 16 * len(lines)), "white")
    tile.paste(drawn, (0, 0))
    draw = ImageDraw.Draw(tile)
    for i, text in enumerate(lines):
        draw.text((0, drawn.height + 3 + 16 * i), text, fill=(40, 40, 40), font=font)
    return tile
