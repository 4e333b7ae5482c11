"""What Markdown for the dashboard is made of: pictures inside URLs, and addresses of files that ``self-train up`` serves."""

from __future__ import annotations

import base64
import io
import os
from pathlib import Path

from PIL import Image

FILES, BOARD = "GLIP_SELF_TRAIN_FILES", "GLIP_SELF_TRAIN_BOARD"
"""Environment, set by ``self-train up``: "URL FOLDER" of a server of files, and the address of TensorBoard."""
PICTURE_WIDTH = 1200


def address_of(path: Path) -> str | None:
    """The file's address, if ``self-train up`` serves the folder it lies in."""
    url, _, root = os.environ.get(FILES, "").partition(" ")
    try:
        return f"{url}/{path.resolve().relative_to(root).as_posix()}" if root else None
    except ValueError:
        return None


def jpeg_url(path: Path) -> str:
    """A picture inside a URL, small enough for a database row."""
    with Image.open(path) as opened:
        image = opened.convert("RGB")
    image.thumbnail((PICTURE_WIDTH, 4 * PICTURE_WIDTH))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=82)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def svg_url(svg: str) -> str:
    """A plot inside a URL."""
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()
