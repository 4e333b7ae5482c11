"""Noun chunks of captions, optionally split at conjunctions or expanded to referring expressions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import takewhile
from typing import TYPE_CHECKING
from unicodedata import normalize

import regex

from pipeline.config import ParsePhrasesConfig
from pipeline.phrases.captions import Boilerplate, find_boilerplate
from pipeline.phrases.lexicons import ALWAYS_PLURAL, ANY_WORDS, ONE_WORDS, OWL_ST, nonvisual
from pipeline.phrases.numbers import is_measure, number_of
from pipeline.phrases.parsed import CaptionPhraseSpans
from pipeline.phrases.parser import Parser
from pipeline.phrases.wordnet import names

if TYPE_CHECKING:
    from spacy.tokens import Doc, Span, Token


NAME_OF_UP_TO = 3
"""Words of a caption that is a name as a whole, though the tagger takes its noun for a verb: "leaves"."""
_CODE = regex.compile(r"\d+(?:[.,x×/-]\d+)*[a-z]{0,3}|[a-z]{1,4}-?\d{3,}[\w-]*", regex.IGNORECASE)
"""Sizes and product codes as heads: "45x60cm", "18V", "DN1234"."""
_BETWEEN_MARKS = regex.compile(r"[\p{L}\p{N}](?:.*[\p{L}\p{N}\p{M}])?", regex.DOTALL)
_NO_NAME = regex.compile(r"[^\p{L}\p{N}\p{M}'’-]+|(?<![^\s])['’-]+|['’-]+(?![^\s])")


class NounPhrases:
    """Extracts the phrases of parsed captions, as configured."""

    def __init__(self, config: ParsePhrasesConfig, parser: Parser) -> None:
        self._config, self._parser, self._cleaned = config, parser, config.rules > 2
        lists = config.nonvisual if config.drop_nonvisual else ()
        self._nonvisual = nonvisual(lists)
        self._generic = OWL_ST if "owl_st" in lists else frozenset()  # has inflected forms: "ideas", "vectors"
        known = names() if self._cleaned and config.known_names else frozenset()
        self._names = known | {" ".join(name.lower().split()) for name in config.names}
        self._longest_name = max((name.count(" ") + 1 for name in self._names), default=1)

    def __call__(self, doc: Doc, *, whole: bool = False) -> CaptionPhraseSpans:
        """Phrases of a parsed text, which may be the ``whole`` caption."""
        config, parsed = self._config, CaptionPhraseSpans()
        boilerplate = find_boilerplate(doc.text) if config.drop_boilerplate else []
        phrases: list[tuple[int, int, str]] = []
        for span, root, is_chunk in self._things(doc, whole):
            lemma, plural = self._lemma(root)
            if reason := self._reason(root, lemma, boilerplate):
                parsed.drop(reason)
                continue
            name, number = self._name(root, lemma, span.start, is_chunk), number_of(span, root, plural=plural)
            if config.method == "referring" and is_chunk:
                span = expand(span, boilerplate)
            span = trim(span, determiners=config.drop_determiners, conjunctions=self._cleaned)
            if not len(span):
                parsed.drop("only_a_determiner")
                continue
            start, end = span.start_char, span.end_char
            if self._cleaned:
                words = _BETWEEN_MARKS.search(doc.text, start, end)
                if words is None or not name:
                    parsed.drop("not_a_word")
                    continue
                start, end = words.span()
                parsed.numbers[start, end] = number
            phrases.append((start, end, name))
        if config.method == "referring":
            outer = _not_contained(phrases)
            parsed.drop("contained", len(phrases) - len(outer))
            phrases = outer
        parsed.phrases = phrases
        return parsed

    def _things(self, doc: Doc, whole: bool) -> Iterator[tuple[Span, Token, bool]]:
        """Things with their heads: noun chunks (True), or parts of them."""
        if self._cleaned:
            self._retag(doc)
        chunks = list(doc.noun_chunks)
        for chunk in chunks:
            pieces = split_conjunctions(chunk) if self._config.split_conjunctions else None
            if pieces is None and self._cleaned:
                pieces = split_countable(chunk)
            yield from [(piece, piece[-1], False) for piece in pieces] if pieces else [(chunk, chunk.root, True)]
        words = [token for token in doc if not token.is_punct]
        if self._cleaned and whole and not chunks and 0 < len(words) <= NAME_OF_UP_TO:
            last, plural = words[-1], self._parser.singular(words[-1].lower_)
            if last.pos_ == "NOUN" or (len(words) == 1 and (plural or last.lower_ in self._parser.nouns)):
                last.tag_, last.pos_ = "NNS" if plural else "NN", "NOUN"
                yield doc[words[0].i : last.i + 1], last, False

    def _retag(self, doc: Doc) -> None:
        """Make nouns of last words that are tagged as adjectives, though they are none: "one platelet"."""
        for token in doc:
            if token.pos_ == "ADJ" and token.lower_ in self._parser.only_nouns:
                following = doc[token.i + 1].pos_ if token.i + 1 < len(doc) else ""
                if following not in ("NOUN", "PROPN", "ADJ", "NUM"):
                    token.pos_ = "NOUN"

    def _lemma(self, root: Token) -> tuple[str, bool]:
        """A head's dictionary form, and whether it is a plural."""
        lemma, word = self._parser.lemma(root).lower(), root.lower_
        if self._cleaned:
            if word in ALWAYS_PLURAL - {"glasses"}:
                return word, True
            if lemma == word and (singular := self._parser.singular(word)):
                return singular, True
            if lemma != word and word in self._parser.nouns and lemma not in self._parser.nouns:
                return word, False  # "lens", "gymnastics"
        return lemma, root.tag_ in ("NNS", "NNPS") or "Plur" in root.morph.get("Number", [])

    def _name(self, root: Token, lemma: str, start: int, is_chunk: bool) -> str:
        """The longest known name that ends with the head, or its compounds and lemma: "traffic light"."""
        before = [t for t in root.lefts if t.dep_ == "compound"]
        if not is_chunk:  # in the dependency tree, words of a part may depend on the other side of the "and"
            before = list(takewhile(lambda t: t.pos_ in ("NOUN", "PROPN"), reversed(root.doc[: root.i])))[::-1]
        if not self._cleaned:
            return " ".join([*(t.lower_ for t in before), lemma])
        for first in range(max(start, root.i - self._longest_name + 1), root.i):
            name = " ".join([*(t.lower_ for t in root.doc[first : root.i]), lemma])
            if name in self._names:
                break
        else:
            name = " ".join([*(t.lower_ for t in before if not is_measure(t)), lemma])
        return " ".join(_NO_NAME.sub(" ", normalize("NFC", name).replace(".", "")).split())

    def _reason(self, root: Token, lemma: str, boilerplate: Sequence[Boilerplate]) -> str | None:
        """Reason to drop a phrase with this root, or None."""
        if self._config.drop_pronouns and root.pos_ == "PRON":
            return "pronoun"
        for part in boilerplate:
            if part.overlaps(root.idx, root.idx + 1):
                return part.reason
        if lemma in self._nonvisual or root.lower_ in self._generic:
            return "nonvisual"
        if self._cleaned and any(t.lower_ in ("no", "zero", "0") for t in root.lefts):
            return "absent"
        is_code = self._cleaned and _CODE.fullmatch(root.text)
        return "not_a_word" if is_code or root.like_url or not any(c.isalpha() for c in root.text) else None


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
    if any(part.overlaps(span.start_char, span.end_char) for part in boilerplate):
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
    for token in span:
        if not (
            token.is_space
            or token.is_punct
            or (determiners and token.pos_ == "DET")
            or (conjunctions and token.pos_ == "CCONJ")
        ):
            return span.doc[token.i : span.end]
    return span.doc[span.end : span.end]
