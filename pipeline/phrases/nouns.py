"""Noun chunks of captions with the parser's own offsets; on request split at conjunctions, or grown to referring expressions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pipeline.config import ParsePhrasesConfig
from pipeline.phrases.captions import Part, parts
from pipeline.phrases.lexicons import OWL_ST, nonvisual
from pipeline.phrases.parsed import Parsed
from pipeline.phrases.parser import Parser

if TYPE_CHECKING:
    from spacy.tokens import Doc, Span, Token


class NounPhrases:
    """Finds the phrases of parsed captions as the settings want them."""

    def __init__(self, config: ParsePhrasesConfig, parser: Parser) -> None:
        self._config, self._parser = config, parser
        lists = config.nonvisual if config.drop_nonvisual else ()
        self._nonvisual = nonvisual(lists)
        self._generic = OWL_ST if "owl_st" in lists else frozenset()  # words as they stand: "ideas", "vectors"

    def __call__(self, doc: Doc) -> Parsed:
        """The caption's phrases."""
        config, parsed = self._config, Parsed()
        useless = parts(doc.text) if config.drop_boilerplate else []
        found: list[tuple[int, int, str]] = []
        for chunk in doc.noun_chunks:
            pieces = split(chunk) if config.split_conjunctions else None
            for span in pieces or (chunk,):
                root = span[-1] if pieces else span.root
                lemma = self._parser.lemma(root).lower()
                if reason := self._reason(root, lemma, useless):
                    parsed.drop(reason)
                    continue
                name = _name(root, lemma, span.start, pieces is not None)
                if config.method == "referring" and not pieces:
                    span = expanded(span, useless)
                span = trimmed(span, determiners=config.drop_determiners)
                if len(span):
                    found.append((span.start_char, span.end_char, name))
                else:
                    parsed.drop("only_a_determiner")
        if config.method == "referring":
            outer = _not_contained(found)
            parsed.drop("contained", len(found) - len(outer))
            found = outer
        parsed.phrases = found
        return parsed

    def _reason(self, root: Token, lemma: str, useless: Sequence[Part]) -> str | None:
        """Why a phrase with this root is not labelled."""
        if self._config.drop_pronouns and root.pos_ == "PRON":
            return "pronoun"
        for part in useless:
            if part.start <= root.idx < part.end:
                return part.reason
        if lemma in self._nonvisual or root.lower_ in self._generic:
            return "nonvisual"
        if root.like_url or not any(c.isalpha() for c in root.text):
            return "not_a_word"
        return None


def _name(root: Token, lemma: str, start: int, split: bool) -> str:
    """The head noun's lemma after its compounds: "traffic light" of "two red traffic lights"."""
    if not split:
        return " ".join([*(t.lower_ for t in root.lefts if t.dep_ == "compound"), lemma])
    first = root.i  # the tree of a split chunk ties its words to the other side of the "and"
    while first > start and root.doc[first - 1].pos_ in ("NOUN", "PROPN"):
        first -= 1
    return " ".join([*(root.doc[i].lower_ for i in range(first, root.i)), lemma])


def split(chunk: Span) -> list[Span] | None:
    """The chunk's parts between "and", "or", "&" and commas, if each of them ends with a common noun; else None.

    "pool and palm trees" is two things, "black and white cat" one, and "Dolce and Gabbana bag" too. Parts are runs of the
    caption's own words: the "red" of "red cup and saucer set" stays with the cup alone.
    """
    doc, cuts = chunk.doc, []
    for token in chunk:
        if token.pos_ == "CCONJ" and token.lower_ in ("and", "or", "&"):
            cuts.append(token.i)
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


def expanded(chunk: Span, useless: Sequence[Part] = ()) -> Span:
    """The chunk with all that hangs on its root in the dependency tree: "dog in a field of flowers" (GRIT).

    As in Kosmos-2 (section 2, step 2) a chunk with conjuncts stays as it is. So does one whose subtree is not a run of words, or
    reaches into a useless part of the caption.
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
    if any(part.start < span.end_char and span.start_char < part.end for part in useless):
        return chunk
    return span


def _not_contained(found: Sequence[tuple[int, int, str]]) -> list[tuple[int, int, str]]:
    """Phrases that lie in no other, by start; of the same span the one found first."""
    kept: list[tuple[int, int, str]] = []
    for phrase in sorted(found, key=lambda p: (p[0], -p[1])):
        if not kept or phrase[1] > kept[-1][1]:
            kept.append(phrase)
    return kept


def trimmed(span: Span, *, determiners: bool) -> Span:
    """The span from its first word that is no mark or space, and no determiner if these go; it may be empty."""
    start = span.start
    while start < span.end:
        token = span.doc[start]
        if not (token.is_space or token.is_punct or (determiners and token.pos_ == "DET")):
            break
        start += 1
    return span.doc[start : span.end] if start > span.start else span
