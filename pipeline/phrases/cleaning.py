"""A copy of a caption that a parser can read, and the place of each of its characters in the caption.

Entities are resolved, tags and invisible characters removed, and the copy is cut into segments at
emoji, separators of product titles, missing spaces after a full stop and blocks of hashtags, so that
no phrase reaches over them.
"""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from pipeline.phrases.captions import BOILERPLATE, find_boilerplate
from pipeline.phrases.lexicons import STOP_WORDS, words

Span = tuple[int, int]

_WALL = "\x00"
"""Mark of a segment's end in the copy; a caption's own control characters are replaced before."""
_PLAIN = re.compile(r"(?:[A-Za-z]+(?:['-][A-Za-z]+)*|\d+)(?:(?:, |,? |\. )(?:[A-Za-z]+(?:['-][A-Za-z]+)*|\d+))*[.!?]?")
"""Captions that need no cleaning, unless they have capitals in a row."""

_ENTITY = re.compile(
    r"&(?:amp;)*(?:#\d{1,7}|#x[0-9a-f]{1,6}|[a-z]{2,31}\d{0,2});|&(?:nbsp|quot|amp|lt|gt)\b"
    r"|\\u[0-9a-f]{4}|\\x[0-9a-f]{2}|\\[nrt](?=[\s\\]|(?-i:[A-Z])|$)|%20",
    re.I,
)
"""HTML's, those of JSON and Python that were left as text, and an address's space."""
_TAG = re.compile(
    r"<!--.*?(?:-->|$)|<(?P<code>script|style)\b[^<>]*>.*?</(?P=code)\s*>|<![^<>]*>|</?(?P<tag>[a-z][\w:-]*)(?:\s[^<>]*|/)?(?:>|$)"
    r"|\[/?(?P<mark>b|i|u|url|img|size|color|quote)(?:=[^\[\]]*)?\]"
    r"|\[/?(?:caption|gallery|embed|video|audio)(?:\s[^\[\]]*)?\]",
    re.I | re.S,
)
_INLINE = words(
    "a abbr b big bdi bdo cite code del em font i ins kbd label mark q s small span strike strong sub sup tt u var wbr"
)
_SPACES = re.compile(r"[^\S\n ]+|[\x1c-\x1f]+")
_LINE = re.compile(r"[\r\x0b\x0c\x85\u2028\u2029]+\n?")

_EMOJI = (
    r"\u2190-\u21ff\u2300-\u27bf\u2900-\u297f\u2b00-\u2bff\ufffc\ufffd\U0001f000-\U0001faff"
    r"\U0001fb00-\U0001fbff\ue000-\uf8ff"
)
_KEYCAP = re.compile("[0-9#*]\ufe0f?\u20e3")
_LATIN, _OTHER = r"[A-Za-z\u00c0-\u024f]", r"[\u0370-\u1cff\u2e80-\ua71f\uac00-\ud7ff]"
_SOFT = r"[*^`_™®©℠\"“”„‟″]+"
_EMOTICON = r"(?<!\w)(?:[:;=]['-]?[()DPpOo/\\|3*]|<3+|[xX]D|\^_*\^)(?!\w)"
_TAG_WORD = r"(?<![\w&/])[#＃][^\W\d_][\w-]*|\bRT\s+(?=@)|(?<![\w.])[@＠]\w[\w.-]*"
_WALLS = re.compile(
    rf"""(?P<emoji>(?:[{_EMOJI}]|{_EMOTICON})+(?:\s*(?:[{_EMOJI}]|{_EMOTICON}))*)
    |(?P<hashtags>(?:{_TAG_WORD})(?:[\s,]*(?:{_TAG_WORD}))*)
    |(?P<full_stops>(?<=[^\W_]{{2}})(?<!\b(?:mr|ms|dr|st|no|vs|co|mt|ft|jr|sr|lt|ca))
        (?<!\b(?:mrs|inc|ltd|sgt|gen|col|etc|ave))
        (?<!\bprof)(?<!\bcapt)[.!?;]+(?!(?:de|fr|ru|io|tv|eu|uk|nl|pl|cz|jp|cn|br|js|py)\b)
        (?=[^\W\d_]{{2}}|[ai]\s)|\.{{2,}}|…)
    |(?P<plural>(?<=\w)\((?:e?s)\))
    |(?P<separators>[|¦•·‧∙⋅∣●▪►‣⁃◆■«»‹›<>{{}}()\[\]\\=+§¶†‡※]|::+|:(?=\s|$)|~
        |(?:(?<=\s)|^)[-–—]+(?!\s+(?:and|or)\b)|(?<=\S)[-–—]+(?=\s|$)(?!\s+(?:and|or)\b)|—|--+
        |(?<=\s)/(?=\s)|(?<=[^\W\d_]{{3}})/(?=[^\W\d_]{{3}})|\s*\n\s*(?=(?-i:[A-Z])|[\n*#-]))
    |(?P<scripts>(?<={_LATIN})\s+(?={_OTHER})|(?<={_OTHER})\s+(?={_LATIN}))
    |(?P<soft>{_SOFT})""",
    re.VERBOSE | re.IGNORECASE,
)
_WORDS = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*")
_HASH = re.compile(r"(?<![\w&/])[#＃](?=[^\W\d_])")
_LAST_WORD = re.compile(r"([^\W\d_]+)\s*$")
_NEXT_WORD = re.compile(r"\s*([^\W\d_]+)")
SHOUTED_WORDS = 3
"""Capital words in a row that are put in lower case: the tagger takes them for names, and verbs for nouns."""


@dataclass(frozen=True)
class Segment:
    """A part of the copy, and the span in the caption of each of its characters; None: ``start`` + index."""

    text: str
    start: int
    spans: tuple[Span, ...] | None = None

    def in_caption(self, start: int, end: int) -> Span:
        """Span in the caption of the segment's characters ``[start, end)``, of which there is at least one."""
        if self.spans is None:
            return self.start + start, self.start + end
        return self.spans[start][0], self.spans[end - 1][1]


@dataclass(frozen=True)
class CleanCaption:
    """A caption's copy.

    text: without entities, tags and invisible characters, to recognise whole captions by. segments:
    parts to parse one by one. kinds: names of what was cleaned.
    """

    text: str
    segments: tuple[Segment, ...]
    kinds: frozenset[str] = frozenset()


@lru_cache(maxsize=16384)  # a shard's captions are checked for a reason to skip them, and then parsed
def clean(caption: str) -> CleanCaption:
    """Clean a caption. Its segments are in order and apart."""
    if _PLAIN.fullmatch(caption) and not _shouted(caption):
        return CleanCaption(caption, (Segment(caption, 0),))
    copy = _Copy(caption)
    copy.replace(_ENTITY, lambda m: _resolved(m[0]), "entities")
    copy.replace(_KEYCAP, lambda m: " \u2328 ", "emoji")
    copy.characters()
    copy.replace(_TAG, lambda m: " " if (m["tag"] or m["mark"] or "").lower() in _INLINE else _WALL, "tags")
    text = copy.text.replace(_WALL, " ")
    copy.build_walls()
    segments = copy.segments()
    return CleanCaption(" ".join(text.split()), segments, frozenset(copy.kinds))


def plain_text(phrase: str) -> str:
    """A phrase's text without entities, tags and invisible characters, for names of classes."""
    if phrase.isascii() and not re.search(r"[^\w ',.-]|_|  ", phrase):
        return phrase
    copy = _Copy(phrase)
    copy.replace(_ENTITY, lambda m: _resolved(m[0]), "entities")
    copy.characters()
    copy.replace(_TAG, lambda m: " ", "tags")
    return " ".join(re.sub(_SOFT, " ", copy.text).split()) or phrase


class _Copy:
    """Text that is rewritten by patterns, with the span in the caption of each character."""

    def __init__(self, caption: str) -> None:
        self.text, self.kinds = caption, set[str]()
        self._spans: Sequence[Span] = [(i, i + 1) for i in range(len(caption))]

    def replace(self, pattern: re.Pattern[str], by: Callable[[re.Match[str]], str | None], kind: str = "") -> None:
        """Replace a pattern's matches, unless ``by`` gives None; each new character has the match's whole span."""
        texts, spans, last = [], list[Span](), 0
        for match in pattern.finditer(self.text):
            new = by(match)
            if new is None or match.end() == match.start():
                continue
            span = self._spans[match.start()][0], self._spans[match.end() - 1][1]
            texts += [self.text[last : match.start()], new]
            spans += [*self._spans[last : match.start()], *[span] * len(new)]
            last = match.end()
            if kind:
                self.kinds.add(kind)
        if last:
            self.text = "".join(texts) + self.text[last:]
            self._spans = spans + list(self._spans[last:])

    def characters(self) -> None:
        """Remove invisible characters, make all spaces one kind, and letters those of the plain alphabet."""
        if self.text.count("\0") * 3 >= len(self.text):  # two bytes a character, read as one
            self.replace(re.compile("\0"), lambda m: "", "invisible")
        self.replace(_LINE, lambda m: "\n")
        self.replace(_SPACES, lambda m: " ")
        if not self.text.isascii() or not self.text.isprintable():
            texts, spans = [], list[Span]()
            for char, span in zip(self.text, self._spans, strict=True):
                new = _character(char)
                if new != char and not new.strip():
                    self.kinds.add("invisible")
                texts.append(new)
                spans += [span] * len(new)
            self.text, self._spans = "".join(texts), spans

    def build_walls(self) -> None:
        """Put the mark of a segment's end wherever no phrase may reach over, outside of boilerplate."""
        if find_boilerplate(self.text):
            self.replace(BOILERPLATE, lambda m: _WALL if m.lastgroup in ("address", "file_name") else None)
        text, boilerplate = self.text, find_boilerplate(self.text)

        def wall(match: re.Match[str]) -> str | None:
            kind, (start, end) = match.lastgroup, match.span()
            if kind != "emoji" and any(part.start < end and start < part.end for part in boilerplate):
                return None
            if kind == "hashtags":
                self.kinds.add(kind)
                return None if _is_word(text, match) else _WALL
            if kind in ("emoji", "full_stops", "separators", "scripts"):
                self.kinds.add(kind)
                return _WALL
            return " "

        self.replace(_WALLS, wall)
        self.replace(_HASH, lambda m: _WALL)

    def segments(self) -> tuple[Segment, ...]:
        """The parts between the walls, without those that have no letter or digit."""
        self.replace(re.compile(r"\s+"), lambda m: " ")
        if shouted := _shouted(self.text):
            self.kinds.add("capitals")
            lower = [c.lower() if len(c.lower()) == 1 else c for c in self.text]
            self.text = "".join(
                "".join(lower[a:b]) if in_capitals else self.text[a:b] for a, b, in_capitals in _cut(self.text, shouted)
            )
        found, start = [], 0
        for part in self.text.split(_WALL):
            first = start + len(part) - len(part.lstrip())
            text = part.strip()
            if any(c.isalnum() for c in text):
                found.append(Segment(text, 0, tuple(self._spans[first : first + len(text)])))
            start += len(part) + 1
        return tuple(found)


def _resolved(entity: str) -> str | None:
    if entity[0] == "%" or len(entity) == 2:
        return "\n" if entity[1] in "nrNR" else " "
    if entity[0] == "\\":
        return chr(int(entity[2:], 16))
    text = entity if entity.endswith(";") else entity + ";"
    for _ in range(entity.lower().count("amp;") + 1):
        text = html.unescape(text)
    if text.startswith("&") and len(text) > 1:
        text = html.unescape(text.lower())
    return None if text.startswith("&") and len(text) > 1 else text


_ALIKE = {"'": "‘’ʼ`´", "-": "‐‑﹣", "–": "‒−―"}


@lru_cache(maxsize=4096)
def _character(char: str) -> str:
    category = unicodedata.category(char)
    if category == "Cf" or char in "\ufe0e\ufe0f\u20e3\u034f\u115f\u1160\u3164\uffa0\u180b\u180c\u180d":
        return ""
    if category in ("Cc", "Cs", "Cn", "Co", "Zs", "Zl", "Zp") and char != "\n" and category != "Co":
        return " "
    if "\uff01" <= char <= "\uff5e":
        return chr(ord(char) - 0xFEE0)
    for plain, others in _ALIKE.items():
        if char in others:
            return plain
    if category in ("Lu", "Ll", "Lo", "Lm", "Lt", "So", "Nd") and not char.isascii():
        plain = unicodedata.normalize("NFKC", char)
        if plain.isalnum() and (category != "So" or len(plain) == 1):
            return plain
    return char


def _is_word(text: str, hashtags: re.Match[str]) -> bool:
    """Whether this is one hashtag that is a word of the sentence: a stop word is next to it."""
    if re.search(r"[\s,]", hashtags[0]) or hashtags[0][0] in "@＠":
        return False
    before, after = _LAST_WORD.search(text, 0, hashtags.start()), _NEXT_WORD.match(text, hashtags.end())
    return any(word is not None and word[1].lower() in STOP_WORDS for word in (before, after))


def _shouted(text: str) -> list[Span]:
    """Runs of words in capitals; or all the text if its words all begin with one, stop words apart.

    A run has SHOUTED_WORDS words, or two of three letters and more.
    """
    runs, run, others, capitals = list[Span](), list[re.Match[str]](), False, 0
    for match in [*_WORDS.finditer(text), None]:
        word = match[0] if match else ""
        if match and word.isupper():
            run.append(match)
        else:
            if len(run) >= SHOUTED_WORDS or (len(run) > 1 and all(len(m[0]) > 2 for m in run)):
                runs.append((run[0].start(), run[-1].end()))
            run = []
        capitals += word[:1].isupper() and len(word) > 1
        others |= bool(word) and not word[0].isupper() and word.lower() not in STOP_WORDS
    if not others and capitals > 1:
        return [(0, len(text))]
    return [r for r in runs if any(len(w) > 1 for w in _WORDS.findall(text[slice(*r)]))]


def _cut(text: str, runs: Sequence[Span]) -> list[tuple[int, int, bool]]:
    """The text as (start, end, whether it is one of the runs)."""
    parts, last = [], 0
    for start, end in runs:
        parts += [(last, start, False), (start, end, True)]
        last = end
    return [*parts, (last, len(text), False)]
