"""A copy of a caption that a parser can read, with the span in the caption of each of its characters.

RULES and CUTS are the tables of what is rewritten, in order. No phrase reaches over what ends a
segment: an emoji, a separator of a product's title, a block of tags.
"""

from __future__ import annotations

import html
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import regex

from pipeline.phrases.captions import BOILERPLATE
from pipeline.phrases.lexicons import DETERMINERS, HTML_INLINE, NO_SENTENCE_ENDS, STOP_WORDS, TOP_LEVEL_DOMAINS

Span = tuple[int, int]
WALL = "\0"
"""Mark of a segment's end in the copy; a caption's own NULs are invisible characters, removed before."""
_PLAIN = regex.compile(r"(?:[A-Za-z]|\d(?!\w))[a-z]*(?:(?:[-']|, ?|\. | )(?:[a-z]+|\d+(?!\w)))*+[.!?]?")
"""Captions that need no cleaning."""
_SEGMENT = regex.compile(rf"[^\s{WALL}](?:[^{WALL}]*[^\s{WALL}])?")


class Rule(NamedTuple):
    """Text to rewrite.

    kind: its name in the report (``captions_with_<kind>``); "" for what is not counted. by: the new
    text, or a function of the match; unchanged text is not counted.
    """

    kind: str
    pattern: regex.Pattern[str]
    by: str | Callable[[regex.Match[str]], str]


def _rule(kind: str, pattern: str, by: str | Callable[[regex.Match[str]], str]) -> Rule:
    simple = f"(?-f:{pattern})"  # without full case folding, which is ten times slower
    return Rule(kind, regex.compile(simple, regex.IGNORECASE | regex.VERBOSE | regex.VERSION1), by)


def _any(words: Iterable[str]) -> str:
    return rf"(?:{'|'.join(sorted(words, key=len, reverse=True))})"


def _entity(match: regex.Match[str]) -> str:
    """The character of an HTML entity, encoded any number of times, or of an escape of JSON or Python."""
    if match["name"] is None:
        return str(match[0].lower().encode().decode("unicode_escape"))
    texts = (html.unescape(f"&{name};") for name in (match["name"], match["name"].lower()))
    return next((text for text in texts if text == "&" or not text.startswith("&")), match[0])


def _compatible(match: regex.Match[str]) -> str:
    """The plain form of a full-width, styled or circled character: "fi" of a ligature, but not "TM"."""
    plain = unicodedata.normalize("NFKC", match[0])
    letters = plain.isalnum() and (len(plain) == 1 or match[0].isalpha())
    return plain if letters or (plain.isascii() and len(plain) == 1) else match[0]


def lower(text: str) -> str:
    """Lower case of the same length: "İ" alone would become two characters."""
    return text.replace("İ", "I").lower()


def _lower(match: regex.Match[str]) -> str:
    text = str(match[0])
    return lower(text) if regex.search(r"\p{Lu}{2}", text) else text


RULES = (
    _rule("entities", r"&(?:amp;)*(?P<name>\#\d{1,7}|\#x[0-9a-f]{1,6}|[a-z]{2,31}\d{0,2});"
          r"|&(?P<name>nbsp|quot|amp|lt|gt)\b|\\u[0-9a-f]{4}|\\x[0-9a-f]{2}|\\[nrt](?=[\s\\]|(?-i:[A-Z])|$)", _entity),
    _rule("entities", "%20", " "),
    _rule("", r"[\r\v\f\x85\u2028\u2029]+\n?", "\n"),
    _rule("", r"[\s\x1c-\x1f--\n\ ]+", " "),
    _rule("invisible", r"[\p{C}\p{Default_Ignorable_Code_Point}--\p{Co}\n]+", ""),
    _rule("", "[‘’ʼ`´]", "'"),
    _rule("", "[‐‑﹣]", "-"),
    _rule("", "[‒−―]", "–"),
    _rule("", r"[^\x00-\x7f](?<=[\uff01-\uff5e\p{L}\p{So}\p{Nd}])", _compatible),
    _rule("tags", rf"</?{_any(HTML_INLINE)}(?:\s[^<>]*|/)?(?:>|$)|\[/?[biu]\]", " "),
    _rule("tags", r"""<!--.*?(?:-->|$)|<(?P<code>script|style)\b[^<>]*>.*?</(?P=code)\s*>|<![^<>]*>
          |</?[a-z][\w:-]*(?:\s[^<>]*|/)?(?:>|$)|\[/?(?:url|img|size|color|quote)(?:=[^\[\]]*)?\]
          |\[/?(?:caption|gallery|embed|video|audio)(?:\s[^\[\]]*)?\]""", WALL),
)  # fmt: skip
"""Rewriting of what is not text: entities, kinds of spaces, invisible characters, tags."""

_HASH = r"[\#＃](?<![\w&/].)(?=\p{L})"
_PICTURE = (
    r"(?:[[\p{So}\p{Co}\p{Emoji_Modifier}←-⇿]--[™®©℠°]]|(?<!\w)(?:[:;=]['-]?[()DPpOo/\\|3*]|<3+|[xX]D|\^_*\^)(?!\w))"
)
PLURAL = _rule("", r"(?<=\w)\(e?s\)", " ")
MARKS = _rule("", r"""[*^`_™®©℠"“”„‟″]+|\s+""", " ")
HASH = _rule("", _HASH, "")
CUTS = (
    PLURAL,
    _rule("emoji", rf"[0-9\#*]\u20e3|{_PICTURE}(?:\s*{_PICTURE})*", WALL),
    _rule("hashtags", rf"{_HASH}(?<=\b{_any(STOP_WORDS)}\s.)"
          rf"|{_HASH}(?=[\w-]+(?:[\s,]+[\#＃][\w-]+){{0,5}}\s+{_any(STOP_WORDS - DETERMINERS)}\b)", ""),
    _rule("hashtags", rf"{_HASH}[\w-]+|\bRT\s+(?=@)|(?<![\w.])[@＠]\w[\w.-]*", WALL),
    _rule("", rf"""{BOILERPLATE.pattern}
          |(?P<full_stops>(?=[.!?;])(?<=[^\W_]{{2}})(?<!\b{_any(NO_SENTENCE_ENDS)})[.!?;]+
              (?!{_any(TOP_LEVEL_DOMAINS)}\b)(?=\p{{L}}{{2}}|[ai]\s)|\.{{2,}}|…)
          |(?P<separators>[|¦•·‧∙⋅∣●▪►‣⁃◆■«»‹›<>\{{\}}\(\)\[\]\\=+§¶†‡※]|::+|:(?=\s|$)|\~|—|--+
              |(?:(?<=\s)|^|(?<=\S)(?=[-–—]+(?:\s|$)))[-–—]+(?!\s+(?:and|or)\b)
              |(?<=\s)/(?=\s)|(?<=\p{{L}}{{3}})/(?=\p{{L}}{{3}})|\s*\n\s*(?=(?-i:[A-Z])|[\n*\#\-]))
          |(?P<scripts>(?=\s)(?<=\p{{Latin}})\s+(?=[\p{{L}}--\p{{Latin}}])
              |(?=\s)(?<=[\p{{L}}--\p{{Latin}}])\s+(?=\p{{Latin}}))""",
          lambda m: m[0] if m.lastgroup in ("price", "shop_talk") else WALL),
    MARKS,
)  # fmt: skip
"""Ends of segments, and marks without meaning. Prices and shop talk stay as they are: a later rule reads them."""

_CAPITALS = r"(?<!\p{L}|\p{L}['-])\p{Lu}+(?:['-]\p{Lu}+)*+(?!\p{L}|['-]\p{L})"
_LONG = _CAPITALS.replace("+", "{3,}", 1)
SHOUTED = Rule("capitals", regex.compile(rf"{_CAPITALS}(?:\P{{L}}+{_CAPITALS}){{2,}}|{_LONG}\P{{L}}+{_LONG}"), _lower)
"""Three words in capitals in a row, or two long ones: the tagger takes them for names, and verbs for nouns."""
_WORDS = regex.compile(r"\p{L}+(?:['-]\p{L}+)*")
TITLE = Rule("capitals", regex.compile("(?s).+"), lambda m: lower(str(m[0])))
"""A whole caption, of which all words but stop words begin with a capital."""


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
    if _PLAIN.fullmatch(caption):
        return CleanCaption(caption, (Segment(caption, 0),))
    copy = _Copy(caption)
    copy.rewrite(RULES)
    text = copy.text.replace(WALL, " ")
    copy.rewrite(CUTS)
    copy.rewrite([TITLE if _is_title(copy.text) else SHOUTED])
    return CleanCaption(" ".join(text.split()), tuple(copy.segments()), frozenset(copy.kinds))


def plain_text(phrase: str) -> str:
    """A phrase's text without entities, tags, hashes and invisible characters, for names of classes."""
    copy = _Copy(phrase)
    copy.rewrite([*RULES, HASH, PLURAL, MARKS])
    return " ".join(copy.text.replace(WALL, " ").split()) or phrase


def _is_title(text: str) -> bool:
    words = _WORDS.findall(text)
    return sum(word[0].isupper() and len(word) > 1 for word in words) > 1 and all(
        word[0].isupper() or word.lower() in STOP_WORDS for word in words
    )


class _Copy:
    """Text that is rewritten by rules, with the span in the caption of each character."""

    def __init__(self, caption: str) -> None:
        self.text, self.kinds = caption, set[str]()
        self._spans: Sequence[Span] = [(i, i + 1) for i in range(len(caption))]

    def rewrite(self, rules: Iterable[Rule]) -> None:
        """Apply rules in order.

        New text of the same length has the spans of the old one's characters, else each of its
        characters has the old one's whole span.
        """
        for kind, pattern, by in rules:
            texts, spans, last = list[str](), list[Span](), 0
            for match in pattern.finditer(self.text):
                (start, end), new = match.span(), by if isinstance(by, str) else by(match)
                if new == match[0]:
                    continue
                old = self._spans[start:end]
                texts += [self.text[last:start], new]
                spans += [
                    *self._spans[last:start],
                    *(old if len(new) == end - start else [(old[0][0], old[-1][1])] * len(new)),
                ]
                last = end
                self.kinds |= {kind or (new == WALL and match.lastgroup) or ""} - {""}
            if last:
                self.text = "".join(texts) + self.text[last:]
                self._spans = spans + list(self._spans[last:])

    def segments(self) -> Iterator[Segment]:
        """The parts between the walls, without those that have no letter or digit."""
        for match in _SEGMENT.finditer(self.text):
            if any(c.isalnum() for c in match[0]):
                yield Segment(match[0], 0, tuple(self._spans[match.start() : match.end()]))
