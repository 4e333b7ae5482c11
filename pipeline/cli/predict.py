"""The command ``glip predict``: boxes of a text's phrases in one image, printed and drawn."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Literal

import click

from pipeline.cli.common import FILE, command
from pipeline.errors import InputError, RunError


@click.group("glip")
def glip() -> None:
    """Use a grounding model on single images."""


@command("predict")
@click.argument("image")
@click.argument("text")
@click.option("--model", required=True, help="Model folder (convert-checkpoint makes one of a release).")
@click.option("--threshold", type=click.FloatRange(0, 1), default=0.3, show_default=True, help="Lowest score shown.")
@click.option("--out", type=FILE, help="File for the picture, .jpg or .png.  [default: IMAGE-predicted.jpg]")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
def predict(
    image: str, text: str, model: str, threshold: float, out: str | None, device: Literal["cpu", "cuda"]
) -> None:
    """Find the phrases of TEXT, which full stops separate, in IMAGE; print the boxes and draw them.

    A box is x1, y1, x2, y2 in pixels of the upright image.

    \b
    Example: glip predict photo.jpg "a cat. a cup." --model glip-t --out cats.jpg
    """
    from pipeline.annotators.base import RegionPredictions, load_annotator
    from pipeline.config import PseudoLabelConfig
    from pipeline.data.images import ImageError, open_image
    from pipeline.data.records import GroundingRecord, Region
    from pipeline.drawing.boxes import draw_regions
    from pipeline.io.atomic import write_atomic

    spans = [match.span() for match in re.finditer(r"[^\s.](?:[^.]*[^\s.])?", text)]
    if not spans:
        raise InputError(f'TEXT {text!r}: found no phrase; want some, such as "a cat. a cup."')
    out = out or f"{Path(image).with_suffix('')}-predicted.jpg"
    if (kind := {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG"}.get(Path(out).suffix.lower())) is None:
        raise InputError(f"--out {out}: want a file that ends in .jpg or .png")
    try:
        picture = open_image(Path(image).read_bytes())
    except ImageError as error:
        raise InputError(f"{image}: cannot be read as an image: {error}") from None
    # GLIP's score is the root of probability times centerness, and the floor is one of probabilities
    annotator = load_annotator(model, PseudoLabelConfig(floor=min(threshold**2, 0.99)), device)
    size = picture.height, picture.width
    queries, missing = annotator.queries(text, spans)
    if missing:
        raise InputError(f"TEXT: {text[slice(*spans[missing[0]])]!r} is longer than the model's text limit")
    prepared = annotator.prepare(picture, size)
    predicted = [annotator.predict(annotator.collate([prepared], [q]))[0] for q in queries]
    if lost := next((p for p in predicted if isinstance(p, ImageError)), None):
        raise RunError(f"{image}: {lost}")
    found = RegionPredictions.joined([p for p in predicted if not isinstance(p, ImageError)])
    regions = []
    for i in (-found.score).argsort(kind="stable"):
        x1, y1, x2, y2 = (float(v) for v in found.boxes[i])
        if found.score[i] >= threshold and x2 > x1 and y2 > y1:
            span, score = spans[found.phrase[i]], float(found.score[i])
            regions.append(
                Region(box=(x1, y1, x2, y2), phrase=text[slice(*span)], tokens_positive=(span,), score=score)
            )
            click.echo(f"{regions[-1].phrase} {score:.2f}  {x1:.1f} {y1:.1f} {x2:.1f} {y2:.1f}")
    record = GroundingRecord(
        key="image", dataset="predict", kind="grounding", image_size=size, caption=text, regions=tuple(regions)
    )
    buffer = io.BytesIO()
    draw_regions(picture, record, width=picture.width).save(buffer, kind)
    write_atomic(out, buffer.getvalue())
    click.echo(f"{len(regions)} boxes from a score of {threshold:g} on; wrote {out}")


glip.add_command(predict)
