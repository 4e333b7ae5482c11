"""Detection of captions and parts of them that describe nothing: file names, addresses, prices."""

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
BOILERPLATE = re.compile(
    rf"""(?P<address>(?:https?://|www\.)\S+|(?<![\w.+-])[\w.+-]+@[\w-]+\.\w[\w.-]*
        |(?<![\w-])[\w-]+\.(?:com|net|org|info|co\.uk)\b(?:/\S*)?)
    |(?P<file_name>(?<![\w()+-])[\w()+-]+\.{_IMAGE}\b|\b(?:img|dsc[nf]?|pict)[_-]?\d+\b)
    |(?P<price>(?:[$£€¥₹]|\b(?:usd|eur|gbp)\b)\ ?{_AMOUNT}
        |(?<![\w.,]){_AMOUNT}\ ?(?:[$£€¥₹]|(?:usd|eur|gbp|dollars?|euros?)\b)
        |\b\d+\ ?%\ off\b)
    |(?P<shop_talk>\b(?:buy\ now|add\ to\ cart|click\ to\ enlarge|click\ here
        |free\ shipping(?:\ on\ (?:all\ )?orders(?:\ over)?)?
        |photo\ by\ (?-i:[A-Z])[^|,.;\n]*
        |royalty[-\ ]free(?:\ stock)?(?:\ (?:photo(?:graph)?s?|images?|pictures?|vectors?|illustrations?))?
        |stock\ (?:photo(?:graph)?s?|images?|pictures?|vectors?|illustrations?)
        |shutterstock|getty\ images|all\ rights\ reserved|sold\ out|out\ of\ stock|no\ image\ available)\b
        |\bimage\ may\ contain\b.*)""",
    re.IGNORECASE | re.VERBOSE | re.DOTALL,
)


class Boilerplate(NamedTuple):
    """Characters ``[start, end)`` of a caption that are boilerplate, and its kind."""

    start: int
    end: int
    reason: str

    def overlaps(self, start: int, end: int) -> bool:
        """Whether it has characters of ``[start, end)``."""
        return self.start < end and start < self.end


def find_boilerplate(caption: str) -> list[Boilerplate]:
    """Find each ``address`` (URL, host, e-mail), ``file_name``, ``price`` and ``shop_talk``, in order.

    CC3M (Sharma et al. 2018, text-based filtering) crops such boilerplate ("click to enlarge
    picture", "stock photo") and keeps the rest. The list of shopping phrases is this project's.
    """
    return [Boilerplate(m.start(), m.end(), m.lastgroup or "") for m in BOILERPLATE.finditer(caption)]


def skip_reason(caption: str) -> str | None:
    """Reason to skip a caption: ``empty_caption``, ``file_name``, ``address``, ``boilerplate``; or None.

    A caption is boilerplate if only numbers, punctuation and stop words remain outside of
    :func:`find_boilerplate`.
    """
    if not caption.strip():
        return "empty_caption"
    if _ADDRESS.match(caption):
        return "address"
    if _FILE_NAME.match(caption) or _CAMERA_NAME.match(caption):
        return "file_name"
    if _NUMBERS.match(caption):
        return "boilerplate"
    if find_boilerplate(caption) and all(w.lower() in STOP_WORDS for w in _WORD.findall(BOILERPLATE.sub(" ", caption))):
        return "boilerplate"
    return None
