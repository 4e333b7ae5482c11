"""How many things a phrase speaks of, by its number word and its head noun."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.phrases.lexicons import ALWAYS_PLURAL, ANY_WORDS, NUMBER_NAMES, ONE_WORDS, SAME_PLURAL, UNITS

if TYPE_CHECKING:
    from spacy.tokens import Span, Token

ANY = 0
"""A plural without a number, or a word such as "every"."""

_SMALL = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
).split()
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
_VALUES = {word: n for n, word in enumerate(_SMALL)} | {word: 10 * n for n, word in enumerate(_TENS, 2)}
_VALUES |= {"dozen": 12, "hundred": 100, "thousand": 1000, "both": 2, "pair": 2, "couple": 2, "trio": 3}
_GROUPS = {"pair", "couple", "trio", "dozen"}


def number_of(chunk: Span, root: Token, *, plural: bool) -> int:
    """Number of things that a chunk with this head names: ANY, 1 for a singular, or its number word.

    plural: whether the head is a plural by its form.
    """
    before = [t for t in chunk if t.i < root.i]
    determiners = {t.lower_ for t in before}
    if determiners & ANY_WORDS:
        return ANY
    counts = [t for n in before if n.dep_ == "nummod" and n.head == root for t in n.subtree if not _is_label(t)]
    counted = _value([t.lower_ for t in counts])
    if counted is None and "both" in determiners:
        counted = 2
    if counted is None and (group := _group(root)) is not None:
        counted = 1 if root.lower_ in ALWAYS_PLURAL else _value(group)
    if counted is not None and counted > 1 and (plural or root.lower_ in SAME_PLURAL):
        return counted
    if counted == 1 and root.lower_ in ALWAYS_PLURAL:
        return 1
    if plural:
        return ANY
    several = any(t.pos_ == "CCONJ" and t.i and chunk.doc[t.i - 1].pos_ in ("NOUN", "PROPN") for t in before)
    if not determiners & ONE_WORDS and (several or root.lower_ in SAME_PLURAL):
        return ANY
    return 1


def is_measure(token: Token) -> bool:
    """Whether a noun before another is the unit of a number, so no part of a name: "5 kg bag", "5 star hotel"."""
    if token.dep_ != "compound" or not token.i or not (number := token.nbor(-1)).like_num:
        return False
    return number.head == token or not number.whitespace_ or (number.is_digit and token.lower_ in UNITS)


def _is_label(token: Token) -> bool:
    """Whether a number counts no things, as it belongs to a unit or follows a word such as "size"."""
    doc, i = token.doc, token.i
    return (i + 1 < len(doc) and is_measure(doc[i + 1])) or (i > 0 and doc[i - 1].lower_ in NUMBER_NAMES)


def _group(root: Token) -> list[str] | None:
    """Words of "a pair", "two dozen" before "of" and this noun."""
    of = root.head
    if root.dep_ != "pobj" or of.lower_ != "of" or of.head.lower_ not in _GROUPS:
        return None
    return [t.lower_ for t in of.head.lefts if t.dep_ == "nummod"] + [of.head.lower_]


def _value(texts: list[str]) -> int | None:
    """Value of number words and digits, None if there are others: "twenty", "five" is 25."""
    total = last = 0
    if "-" in texts and all(text.isdigit() for text in texts if text != "-"):
        return None  # a range: "2-3 apples"
    for word in texts:
        if word in ("and", "a", "-"):
            continue
        digits = word.replace(",", "")
        value = _VALUES.get(word, int(digits) if digits.isascii() and digits.isdigit() and len(digits) < 7 else None)
        if value is None:
            return None
        if word == "thousand":
            total, last = total + max(last, 1) * value, 0
        else:
            last = max(last, 1) * value if word in ("dozen", "hundred") else last + value
    return total + last or None
