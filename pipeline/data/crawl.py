"""Image and caption of a sample of a crawl shard, in img2dataset's layout."""

from __future__ import annotations

import json
import re
from ast import literal_eval
from collections import Counter
from contextlib import suppress
from typing import Any

from pipeline.data.images import IMAGE_EXTENSIONS
from pipeline.errors import RunError
from pipeline.execution.reports import Tally
from pipeline.io.tars import TarProblems, TarSample

IMAGE = f"an image (KEY.{', KEY.'.join(IMAGE_EXTENSIONS)})"
CAPTION = "its caption (KEY.txt, `caption` in KEY.json, or a file of captions: parse-phrases --captions)"
DOT_IN_KEY = "dot_in_key"
UNREAD = frozenset({
    "no_image", "no_caption", "empty_caption", "caption_not_utf8", "caption_is_data", "bad_json", "no_json", DOT_IN_KEY,
})  # fmt: skip
"""Reasons for which a sample is lost because its files are not laid out, or not named, as expected."""
MAX_UNREAD_SHARE = 0.5
"""A shard fails if a larger share of its samples is lost for reasons in UNREAD."""
PLACEHOLDERS = frozenset("nan null none nil na undefined unknown missing empty".split())
"""Words that programs write for an absent caption."""
DESCRIBED = frozenset(
    "no caption captions description title text alt src image images img photo photos picture pictures pic thumbnail "
    "available found provided not".split()
)
"""Words that occur with those, or alone for something absent: "no title", "image not found", "caption"."""
_UNSEEN = " \t\r\n\0\u00a0\u200b\u200c\u200d\u2060\ufeff"
_EXAMPLES = 2
_NAMED = 6
_KNOWN = frozenset({*IMAGE_EXTENSIONS, "txt", "json", "link"})


def image_of(sample: TarSample) -> tuple[str, bytes] | None:
    """(extension, content) of a sample's image, or None."""
    for extension in IMAGE_EXTENSIONS:
        if extension in sample.files:
            return extension, sample.files[extension]
    return None


def caption_of(sample: TarSample) -> tuple[str | None, str | None]:
    """Caption from ``key.txt``, else (or if that says nothing) from ``key.json``: (caption, None) or
    (None, reason).

    An object in ``key.txt`` is read as one in ``key.json``; without a ``caption``, and lists, are
    ``caption_is_data``.
    """
    text, reason = None, "no_caption"
    if "txt" in sample.files:
        try:
            text = sample.files["txt"].decode("utf-8")
            if (data := _data(text.strip(_UNSEEN))) is not None:
                text, reason = _stated_caption(data), "caption_is_data"
        except UnicodeError:
            text, reason = None, "caption_not_utf8"
        if text is not None and (seen := text.strip(_UNSEEN)) and not is_placeholder(seen):
            return text, None
    if "json" in sample.files:
        try:
            caption = _stated_caption(json.loads(sample.files["json"]))
            if caption is not None:
                return caption, None
        except UnicodeEncodeError:
            reason = "caption_not_utf8"
        except (ValueError, AttributeError):
            reason = "bad_json" if reason == "no_caption" else reason
    return text, None if text is not None else reason


def _stated_caption(data: Any) -> str | None:
    """``caption`` of an object, if it is text. JSON may escape a lone surrogate, which UTF-8 cannot
    encode: a UnicodeEncodeError. Other values than objects are an AttributeError.
    """
    caption = data.get("caption")
    if not isinstance(caption, str):
        return None
    caption.encode()
    return caption


def _data(text: str) -> dict[Any, Any] | None:
    """The object that a text is, as JSON or as Python writes it; {} for a list, or lines of JSON; None
    for a sentence.
    """
    if not text.startswith(("{", "[")):
        return None
    for parse in (json.loads, literal_eval):
        with suppress(ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
            data = parse(text)
            return data if isinstance(data, dict) else {}
    with suppress(ValueError, RecursionError):
        json.loads(text.splitlines()[0])
        return {}
    return None


def dotted_keys(sample: TarSample) -> list[str]:
    """Keys of the image-text pairs that are in a sample only because a key ends at its first dot:
    ``a.0.jpg``, ``a.0.txt`` and ``a.1.jpg``, ``a.1.txt`` are one sample ``a``.
    """
    kinds: dict[str, set[str]] = {}
    for extension in sample.files:
        prefix, dot, last = extension.rpartition(".")
        if dot:
            kinds.setdefault(prefix, set()).add("image" if last in IMAGE_EXTENSIONS else last)
    return [f"{sample.key}.{prefix}" for prefix, found in kinds.items() if "image" in found and found & {"txt", "json"}]


class UnreadMembers:
    """Losses of a shard whose files are not laid out or named as expected, for an error that names
    them. wanted: files of a sample that the stage reads.
    """

    def __init__(self, shard: str, wanted: str) -> None:
        self._shard, self._wanted = shard, wanted
        self._lost: list[str] = []
        self._dotted = ""
        self._not_understood: Counter[str] = Counter()

    def see(self, sample: TarSample, samples: Tally) -> bool:
        """Count a sample's members that no stage reads, and drop the pairs of :func:`dotted_keys`.

        Returns whether the sample consists of such pairs only.
        """
        if unknown := sample.files.keys() - _KNOWN:
            self._not_understood.update(unknown if len(self._not_understood) < _NAMED else ["other"])
            if dotted := dotted_keys(sample):
                samples.drop(DOT_IN_KEY, len(dotted))
                self._dotted = self._dotted or dotted[0]
                self.lose(sample)
                return not sample.files.keys() & _KNOWN
        return False

    def lose(self, sample: TarSample) -> None:
        """Note the members of a lost sample."""
        if len(self._lost) < _EXAMPLES:
            self._lost.append(f"{sample.key}: {described(sample)}")

    def numbers(self) -> dict[str, float]:
        """Number of members that no stage reads, for the shard's report; {} if there are none."""
        unknown = sum(self._not_understood.values())
        return {"members_not_understood": float(unknown)} if unknown else {}

    def check(self, read: int, lost: Tally, problems: TarProblems, allowed: float = MAX_UNREAD_SHARE) -> None:
        """Refuse a shard of which too little can be read: ``read`` samples, apart from those lost.

        Raises:
            RunError: more than the share ``allowed`` of the samples was lost for a reason in
                UNREAD, or there are members but no sample; names what was found and wanted.
        """
        seen, unread = read + lost.seen, {reason: n for reason, n in lost.dropped.items() if reason in UNREAD}
        if sum(unread.values()) <= allowed * seen and (seen or not problems.counts):
            return
        hints = [self._wanted]
        if self._dotted:
            hints.append(f"keys without dots (a key ends at its first, so {self._dotted!r} is none)")
        if "duplicate_key" in problems.counts or {"no_image", "no_caption"} <= unread.keys():
            hints.append("the files of a sample next to each other, with the same key and folder")
        noted = f" ({problems.counts}; the first: {problems.notes[0]})" if problems.counts else ""
        raise RunError(
            f"{self._shard}: {sum(unread.values())} of {seen} samples cannot be read ({unread or 'no sample'}); "
            f"found {'; '.join(self._lost) or 'no member KEY.EXTENSION'}{noted}; want {', and '.join(hints)}"
        )


def described(sample: TarSample) -> str:
    """Extensions of a sample's files, with the fields of its JSON."""
    named = [f"{e}{_fields(sample.files[e]) if e == 'json' else ''}" for e in list(sample.files)[:_NAMED]]
    return ", ".join(named) + (f" and {len(sample.files) - _NAMED} more" if len(sample.files) > _NAMED else "")


def _fields(data: bytes) -> str:
    try:
        row = json.loads(data)
    except ValueError:
        return " (broken)"
    if not isinstance(row, dict):
        return f" ({type(row).__name__})"
    fields = [f"`{k}`" + ("" if isinstance(v, str) else f": {json.dumps(v)[:20]}") for k, v in row.items()]
    return f" with {', '.join(fields[:_NAMED]) or 'nothing'}"


def is_placeholder(text: str) -> bool:
    """Whether all words denote an absent caption: "nan", "[no title]", "NULL description", "n/a"."""
    found = re.findall(r"[^\W\d_]+", text.lower().replace("n/a", "na"))
    if not found or not (PLACEHOLDERS | DESCRIBED).issuperset(found):
        return False
    absent = PLACEHOLDERS | {"no", "not", "alt", "caption", "description"}
    return not absent.isdisjoint(found) or (len(text.strip()) > len(found[0]) and len(found) == 1 and text[0] in "[(")
