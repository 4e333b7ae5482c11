"""Captions, and parts of captions, that describe nothing: file names, addresses, prices and shop talk."""

from __future__ import annotations

import re
from typing import NamedTuple

from pipeline.phrases.lexicons import STOP_WORDS

_IMAGE = r"(?:jpe?g|png|gif|webp|bmp|tiff?|svg|pdf)"
_FILE_NAME = re.compile(rf"^\s*[\w()+-]+(?:\s+[\w()+-]+)*\.{_IMAGE}\s*$", re.IGNORECASE)
_CAMERA_NAME = re.compile(
    r"^\s*(?:img|dsc[nf]?|pict|p|image|photo|picture|screenshot|screen[ _-]?shot|untitled)[\s_-]*\d*\s*$",
    re.IGNORECASE,
)
_ADDRESS = re.compile(r"^\s*(?:https?://|www\.)\S+\s*$", re.IGNORECASE)
_NUMBERS = re.compile(r"^[\W\d_]*$")
_WORD = re.compile(r"[^\W\d_]+")

_AMOUNT = r"\d[\d.,]*"
_PARTS = re.compile(
    rf"""(?P<address>(?:https?://|www\.)\S+|(?<![\w.+-])[\w.+-]+@[\w-]+\.\w[\w.-]*
        |(?<![\w-])[\w-]+\.(?:com|net|org|info|co\.uk)\b(?:/\S*)?)
    |(?P<file_name>(?<![\w()+-])[\w()+-]+\.{_IMAGE}\b|\b(?:img|dsc[nf]?|pict)[_-]?\d+\b)
    |(?P<price>(?:[$£€¥₹]|\b(?:usd|eur|gbp)\b)\ ?{_AMOUNT}|(?<![\w.,]){_AMOUNT}\ ?(?:[$£€¥₹]|(?:usd|eur|gbp|dollars?|euros?)\b)
        |\b\d+\ ?%\ off\b)
    |(?P<shop_talk>\b(?:buy\ now|add\ to\ cart|click\ to\ enlarge|click\ here|free\ shipping(?:\ on\ (?:all\ )?orders(?:\ over)?)?
        |photo\ by\ (?-i:[A-Z])[^|,.;\n]*
        |royalty[-\ ]free(?:\ stock)?(?:\ (?:photo(?:graph)?s?|images?|pictures?|vectors?|illustrations?))?
        |stock\ (?:photo(?:graph)?s?|images?|pictures?|vectors?|illustrations?)
        |shutterstock|getty\ images|all\ rights\ reserved|sold\ out|out\ of\ stock|no\ image\ available)\b
        |\bimage\ may\ contain\b.*)""",
    re.IGNORECASE | re.VERBOSE | re.DOTALL,
)
_HINT = re.compile(
    r"[$£€¥₹@%\d]|\.\w|buy now|to cart|click|free|photo |stock|rights res|sold out|may contain|getty|no image",
    re.IGNORECASE,
)
"""What every part has somewhere: most captions have none, and are not searched for parts."""


class Part(NamedTuple):
    """Characters ``[start, end)`` of a caption that describe nothing, and what they are."""

    start: int
    end: int
    reason: str


def parts(caption: str) -> list[Part]:
    """Where a caption is an ``address`` (URL, host, e-mail), a ``file_name``, a ``price`` or ``shop_talk``, in order.

    CC3M's clean-up (Sharma et al. 2018, text-based filtering) crops such boiler-plate ("click to enlarge picture", "stock photo") and
    keeps the rest; which words are shop talk is our own short list.
    """
    if not _HINT.search(caption):
        return []
    return [Part(m.start(), m.end(), m.lastgroup or "") for m in _PARTS.finditer(caption)]


def useless(caption: str) -> str | None:
    """Why a whole caption is not worth parsing (``empty_caption``, ``file_name``, ``address``, ``boilerplate``), or None.

    A caption is boiler-plate if nothing but numbers, marks and stop words is left beside its :func:`parts`.
    """
    if not caption.strip():
        return "empty_caption"
    if _ADDRESS.match(caption):
        return "address"
    if _FILE_NAME.match(caption) or _CAMERA_NAME.match(caption):
        return "file_name"
    if _NUMBERS.match(caption):
        return "boilerplate"
    if found := parts(caption):
        rest, last = [], 0
        for part in found:
            rest.append(caption[last : part.start])
            last = part.end
        rest.append(caption[last:])
        if all(word.lower() in STOP_WORDS for word in _WORD.findall(" ".join(rest))):
            return "boilerplate"
    return None
