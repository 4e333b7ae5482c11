"""Captions that describe nothing: file names, addresses, prices and shop talk."""

from __future__ import annotations

import re

_FILE_NAME = re.compile(
    r"^\s*[\w()+-]+(?:[\s_-]+[\w()]+)*\.(?:jpe?g|png|gif|webp|bmp|tiff?|svg|pdf)\s*$", re.IGNORECASE
)
_CAMERA_NAME = re.compile(
    r"^\s*(?:img|dsc[nf]?|pict|p|image|photo|picture|screenshot|screen[ _-]?shot|untitled)[\s_-]*\d*\s*$",
    re.IGNORECASE,
)
_ADDRESS = re.compile(r"^\s*(?:https?://|www\.)\S+\s*$", re.IGNORECASE)
_NUMBERS = re.compile(r"^[\W\d_]*$")
_SHOP = re.compile(
    r"\b(?:buy now|add to cart|click to enlarge|click here|free shipping|stock photos?|royalty[- ]free|shutterstock"
    r"|all rights reserved|sold out|out of stock|image may contain|no image available|photo by|getty images)\b",
    re.IGNORECASE,
)


def useless(caption: str) -> str | None:
    """Why a caption is not worth parsing (``empty_caption``, ``file_name``, ``address``, ``boilerplate``), or None.

    The shop phrases are the kind that CC3M's and LAION's clean-ups list; a caption is dropped for them even if other
    words stand beside, as those are rarely about the picture.
    """
    if not caption.strip():
        return "empty_caption"
    if _ADDRESS.match(caption):
        return "address"
    if _FILE_NAME.match(caption) or _CAMERA_NAME.match(caption):
        return "file_name"
    if _NUMBERS.match(caption) or _SHOP.search(caption):
        return "boilerplate"
    return None
