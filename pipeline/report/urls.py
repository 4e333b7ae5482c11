"""URLs in pages and Markdown: embedded images, and files that ``self-train up`` serves."""

from __future__ import annotations

import base64
import io
import os
from pathlib import Path

from PIL import Image

FILES, BOARD = "GLIP_SELF_TRAIN_FILES", "GLIP_SELF_TRAIN_BOARD"
"""Environment variables of ``self-train up``: "URL FOLDER" of its files; TensorBoard's URL."""
THUMBNAIL_WIDTH = 1200


def link(text: str, path: Path) -> str:
    """Markdown link to a file if ``self-train up`` serves it, else its path."""
    url, _, root = os.environ.get(FILES, "").partition(" ")
    if root and path.resolve().is_relative_to(root):
        return f"[{text}]({url}/{path.resolve().relative_to(root).as_posix()})"
    return f"{text}: `{path}`"


def data_url(data: bytes, media_type: str) -> str:
    """A file's content as a URL."""
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"


def jpeg_url(image: Image.Image, quality: int) -> str:
    """The image as a JPEG data URL."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return data_url(buffer.getvalue(), "image/jpeg")


def thumbnail_url(path: Path) -> str:
    """An image file as a JPEG data URL, small enough for a database row."""
    with Image.open(path) as opened:
        image = opened.convert("RGB")
    image.thumbnail((THUMBNAIL_WIDTH, 4 * THUMBNAIL_WIDTH))
    return jpeg_url(image, quality=82)
