"""How many things a phrase speaks of, by its number word and its head noun."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.phrases.lexicons import words

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
_MULTIPLIERS = {"dozen", "hundred"}
_GROUPS = {"pair", "couple", "trio", "dozen"}
ANY_WORDS = words(
    "all any dozens each enough every few hundreds less lots many more most multiple numerous plenty several some "
    "thousands various least over than"
)
ONE_WORDS = frozenset({"a", "an", "another", "one", "single", "that", "this"})
_SAME_PLURAL = words("aircraft bison cattle deer fish moose offspring salmon sheep shrimp spacecraft swine trout")
ALWAYS_PLURAL = words(
    "binoculars eyeglasses glasses goggles headphones jeans leggings overalls pajamas pants pliers pyjamas scissors "
    "shorts spectacles sunglasses tights tongs trousers tweezers underpants"
)


def number_of(chunk: Span, root: Token, *, plural: bool) -> int:
    """Number of things that a chunk with this head names: ANY, 1 for a singular, or its number word.

    plural: whether the head is a plural by its form, whatever its tag is.
    """
    before = [t for t in chunk if t.i < root.i]
    determiners = {t.lower_ for t in before}
    plural = plural or root.tag_ in ("NNS", "NNPS") or "Plur" in root.morph.get("Number", [])
    if determiners & ANY_WORDS:
        return ANY
    counted = _value([t.lower_ for t in before if t.dep_ == "nummod" and t.head == root for t in t.subtree])
    if counted is None and "both" in determiners:
        counted = 2
    if counted is None and (group := _group(root)) is not None:
        counted = 1 if root.lower_ in ALWAYS_PLURAL else _value(group)
    if counted is not None and counted > 1 and (plural or root.lower_ in _SAME_PLURAL):
        return counted
    if counted == 1 and root.lower_ in ALWAYS_PLURAL:
        return 1
    if plural:
        return ANY
    several = any(t.pos_ == "CCONJ" and t.i and chunk.doc[t.i - 1].pos_ in ("NOUN", "PROPN") for t in before)
    if not determiners & ONE_WORDS and (several or root.lower_ in _SAME_PLURAL):
        return ANY
    return 1


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
            last = max(last, 1) * value if word in _MULTIPLIERS else last + value
    return total + last or None
