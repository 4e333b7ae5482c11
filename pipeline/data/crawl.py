"""Image and caption of a sample of a crawl shard, in img2dataset's layout."""

from __future__ import annotations

import json

from pipeline.data.images import IMAGE_EXTENSIONS
from pipeline.io.tars import TarSample


def image_of(sample: TarSample) -> tuple[str, bytes] | None:
    """(extension, content) of a sample's image, or None."""
    for extension in IMAGE_EXTENSIONS:
        if extension in sample.files:
            return extension, sample.files[extension]
    return None


def caption_of(sample: TarSample) -> tuple[str | None, str | None]:
    """Caption from ``key.txt``, else from ``key.json``: (caption, None) or (None, reason)."""
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
                caption.encode()  # JSON may escape a lone surrogate, which UTF-8 cannot encode
            except UnicodeEncodeError:
                return None, "caption_not_utf8"
            return caption, None
    return None, "no_caption"
