"""Reading crawl shards as the labelling stages do: img2dataset's members, one way of judging them."""

from __future__ import annotations

import json

from pipeline.data.images import IMAGE_EXTENSIONS
from pipeline.io.tars import TarSample


def image_of(sample: TarSample) -> tuple[str, bytes] | None:
    """(extension, bytes) of the sample's image, or None."""
    for extension in IMAGE_EXTENSIONS:
        if extension in sample.files:
            return extension, sample.files[extension]
    return None


def caption_of(sample: TarSample) -> tuple[str | None, str | None]:
    """(caption, None) or (None, reason): from ``key.txt``, else ``caption`` of ``key.json``."""
    if "txt" in sample.files:
        try:
            return sample.files["txt"].decode("utf-8"), None
        except UnicodeDecodeError:
            return None, "caption_not_utf8"
    if "json" in sample.files:
        try:
            caption = json.loads(sample.files["json"]).get("caption")
        except (ValueError, AttributeError):
            return None, "bad_json"
        if isinstance(caption, str):
            try:
                caption.encode()  # JSON can hold half a surrogate pair, which no file can
            except UnicodeEncodeError:
                return None, "caption_not_utf8"
            return caption, None
    return None, "no_caption"
