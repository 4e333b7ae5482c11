"""Noun chunks of captions, optionally split at conjunctions or expanded to referring expressions."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING
from unicodedata import category, normalize

from pipeline.config import ParsePhrasesConfig
from pipeline.phrases.captions import Boilerplate, find_boilerplate
from pipeline.phrases.lexicons import OWL_ST, nonvisual
from pipeline.phrases.numbers import ALWAYS_PLURAL, ANY_WORDS, ONE_WORDS, number_of
from pipeline.phrases.parsed import CaptionPhraseSpans
from pipeline.phrases.parser import Parser
from pipeline.phrases.wordnet import names

if TYPE_CHECKING:
    from spacy.tokens import Doc, Span, Token


KEPT_FORMS = ALWAYS_PLURAL - {"glasses"} | {"lens", "clothes", "gymnastics"}
"""Heads whose form is their name, though a lemmatizer cuts off the "s"."""
_CODE = re.compile(r"\d+(?:[.,x×/-]\d+)*[a-z]{0,3}|[a-z]{1,4}-?\d{3,}[\w-]*", re.IGNORECASE)
"""Sizes and product codes as heads: "45x60cm", "18V", "DN1234"."""


class NounPhrases:
    """Extracts the phrases of parsed captions, as configured."""

    def __init__(self, config: ParsePhrasesConfig, parser: Parser) -> None:
        self._config, self._parser = config, parser
        lists = config.nonvisual if config.drop_nonvisual else ()
        self._nonvisual = nonvisual(lists)
        self._names = frozenset(" ".join(name.lower().split()) for name in config.names) | (
            names() if config.rules > 2 and config.known_names else frozenset()
        )
        self._longest_name = max((name.count(" ") + 1 for name in self._names), default=1)
        self._generic = OWL_ST if "owl_st" in lists else frozenset()  # has inflected forms: "ideas", "vectors"

    def __call__(self, doc: Doc) -> CaptionPhraseSpans:
        """Phrases of a parsed text."""
        config, parsed, cleaned = self._config, CaptionPhraseSpans(), self._config.rules > 2
        boilerplate = find_boilerplate(doc.text) if config.drop_boilerplate else []
        phrases: list[tuple[int, int, str]] = []
        if cleaned:
            self._retag(doc)
        for chunk in doc.noun_chunks:
            pieces = split_conjunctions(chunk) if config.split_conjunctions else None
            if pieces is None and cleaned:
                pieces = split_countable(chunk)
            for span in pieces or (chunk,):
                root = span[-1] if pieces else span.root
                lemma, singular = self._parser.lemma(root).lower(), None
                if cleaned and lemma == root.lower_ and (singular := self._parser.singular(root.lower_)):
                    lemma = singular
                if cleaned and root.lower_ in KEPT_FORMS:
                    lemma = root.lower_
                if reason := self._reason(root, lemma, boilerplate):
                    parsed.drop(reason)
                    continue
                name = _name(root, lemma, span.start, pieces is not None)
                if cleaned:
                    name = _normalised(self._known_name(root, lemma, span.start) or name)
                number = number_of(span, root, plural=singular is not None)
                if config.method == "referring" and not pieces:
                    span = expand(span, boilerplate)
                if cleaned:
                    span = _without_enumeration(span, root)
                span = trim(span, determiners=config.drop_determiners, conjunctions=cleaned)
                start, end = span.start_char, span.end_char
                if not len(span):
                    parsed.drop("only_a_determiner")
                    continue
                if cleaned:
                    start, end = _without_marks(doc.text, start, end)
                if start == end or not name:
                    parsed.drop("not_a_word")
                    continue
                phrases.append((start, end, name))
                if cleaned:
                    parsed.numbers[start, end] = number
        if config.method == "referring":
            outer = _not_contained(phrases)
            parsed.drop("contained", len(phrases) - len(outer))
            phrases = outer
        parsed.phrases = phrases
        return parsed

    def _retag(self, doc: Doc) -> None:
        """Make nouns of last words that are tagged as adjectives, though they are none: "one platelet"."""
        for token in doc:
            if token.pos_ == "ADJ" and self._parser.only_noun(token.lower_):
                following = doc[token.i + 1].pos_ if token.i + 1 < len(doc) else ""
                if following not in ("NOUN", "PROPN", "ADJ", "NUM"):
                    token.pos_ = "NOUN"

    def _known_name(self, root: Token, lemma: str, start: int) -> str | None:
        """The longest name of several words that ends with the root: "red blood cell"."""
        words = [root.doc[i].lower_ for i in range(max(start, root.i - self._longest_name + 1), root.i)]
        for first in range(len(words)):
            name = " ".join([*words[first:], lemma])
            if name in self._names:
                return name
        return None

    def _reason(self, root: Token, lemma: str, boilerplate: Sequence[Boilerplate]) -> str | None:
        """Reason to drop a phrase with this root, or None."""
        if self._config.drop_pronouns and root.pos_ == "PRON":
            return "pronoun"
        for part in boilerplate:
            if part.start <= root.idx < part.end:
                return part.reason
        if lemma in self._nonvisual or root.lower_ in self._generic:
            return "nonvisual"
        if self._config.rules > 2 and any(t.lower_ in ("no", "zero", "0") for t in root.lefts):
            return "absent"
        if self._config.rules > 2 and _CODE.fullmatch(root.text):
            return "not_a_word"
        if root.like_url or not any(c.isalpha() for c in root.text):
            return "not_a_word"
        return None


def _name(root: Token, lemma: str, start: int, split_conjunctions: bool) -> str:
    """Compounds and lemma of the head noun: "traffic light" for "two red traffic lights"."""
    if not split_conjunctions:
        return " ".join([*(t.lower_ for t in root.lefts if t.dep_ == "compound"), lemma])
    first = root.i  # in the dependency tree, words of a split chunk may depend on the other side of the "and"
    while first > start and root.doc[first - 1].pos_ in ("NOUN", "PROPN"):
        first -= 1
    return " ".join([*(root.doc[i].lower_ for i in range(first, root.i)), lemma])


def split_conjunctions(chunk: Span) -> list[Span] | None:
    """Split a chunk at "and", "or", "&" and commas if each part ends with a common noun; else None.

    "pool and palm trees" is split, "black and white cat" and "Dolce and Gabbana bag" are not.
    Modifiers are not distributed: in "red cup and saucer set", "red" belongs only to the cup.
    """
    doc = chunk.doc
    cuts = [token.i for token in chunk if token.pos_ == "CCONJ" and token.lower_ in ("and", "or", "&")]
    if not cuts:
        return None
    cuts += [token.i for token in chunk if token.text == ","]
    pieces, start = [], chunk.start
    for cut in [*sorted(cuts), chunk.end]:
        if cut > start:
            if doc[cut - 1].pos_ != "NOUN":
                return None
            pieces.append(doc[start:cut])
        start = cut + 1
    return pieces if len(pieces) > 1 else None


def split_countable(chunk: Span) -> list[Span] | None:
    """Split a chunk at "and", "or", "&" and commas where both sides are things of their own; else None.

    So they are if the second has its own article or number, or if the first does not agree with the
    chunk's head, or is a plural as the head is: "one platelet and red blood cells". "pool and palm
    trees" and "salt and pepper shakers" are not split.
    """
    doc, root = chunk.doc, chunk.root
    plural = root.tag_ in ("NNS", "NNPS")
    pieces, start = [], chunk.start
    for i in range(chunk.start + 1, chunk.end - 1):
        token, before, after = doc[i], doc[i - 1], doc[i + 1]
        if (token.text == "," and after.pos_ == "CCONJ") or token.lower_ not in ("and", "or", "&", ","):
            continue
        if before.text == "," and i - 1 > start:
            before = doc[i - 2]
        own = after.pos_ in ("DET", "NUM") or after.lower_ in ANY_WORDS
        one = plural and doc[start].lower_ in ONE_WORDS and before.pos_ == "NOUN"
        if before.pos_ in ("NOUN", "PROPN") and (own or one or (plural and before.tag_ == "NNS")):
            pieces.append(doc[start : before.i + 1])
            start = i + 1
    return [*pieces, doc[start : root.i + 1]] if pieces and start <= root.i else None


def _without_enumeration(span: Span, root: Token) -> Span:
    """The span from its last article after a mark on: "a dog" of "2. a dog" and "e.g. a dog"."""
    for i in range(min(root.i, span.end - 1), span.start, -1):
        if span.doc[i].pos_ == "DET" and (span.doc[i - 1].is_punct or span.doc[i - 1].text.endswith(".")):
            return span.doc[i : span.end]
    return span


def _without_marks(text: str, start: int, end: int) -> tuple[int, int]:
    """The span without what is no letter, digit or accent at its ends."""
    while start < end and not text[start].isalnum():
        start += 1
    while end > start and not (text[end - 1].isalnum() or category(text[end - 1])[0] == "M"):
        end -= 1
    return start, end


def _normalised(name: str) -> str:
    """A name of words and hyphens alone, "" if nothing is left."""
    letters = normalize("NFC", name).replace(".", "")
    kept = (c if c.isalnum() or c in "'’-" or category(c)[0] == "M" else " " for c in letters)
    return " ".join(filter(None, (word.strip("'-’") for word in "".join(kept).split())))


def expand(chunk: Span, boilerplate: Sequence[Boilerplate] = ()) -> Span:
    """Expand a chunk to its root's subtree, as GRIT does: "dog in a field of flowers".

    A chunk with conjuncts is returned unchanged, as in Kosmos-2 (section 2, step 2), and so is one
    whose subtree is not contiguous or overlaps boilerplate.
    """
    root = chunk.root
    if root.conjuncts:
        return chunk
    doc, start, end = chunk.doc, min(root.left_edge.i, chunk.start), max(root.right_edge.i + 1, chunk.end)
    if end - start == len(chunk) or sum(1 for _ in root.subtree) != end - start:
        return chunk
    while end > chunk.end and (doc[end - 1].is_punct or doc[end - 1].is_space):
        end -= 1
    while start < chunk.start and (doc[start].is_punct or doc[start].is_space):
        start += 1
    span = doc[start:end]
    if any(part.start < span.end_char and span.start_char < part.end for part in boilerplate):
        return chunk
    return span


def _not_contained(phrases: Sequence[tuple[int, int, str]]) -> list[tuple[int, int, str]]:
    """Phrases that are not contained in another, sorted by start; the first of equal spans."""
    kept: list[tuple[int, int, str]] = []
    for phrase in sorted(phrases, key=lambda p: (p[0], -p[1])):
        if not kept or phrase[1] > kept[-1][1]:
            kept.append(phrase)
    return kept


def trim(span: Span, *, determiners: bool, conjunctions: bool = False) -> Span:
    """Remove leading punctuation, spaces and, optionally, determiners and conjunctions; may be empty."""
    start = span.start
    while start < span.end:
        token = span.doc[start]
        if not (
            token.is_space
            or token.is_punct
            or (determiners and token.pos_ == "DET")
            or (conjunctions and token.pos_ == "CCONJ")
        ):
            break
        start += 1
    return span.doc[start : span.end] if start > span.start else span
