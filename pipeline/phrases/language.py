"""Detection of captions in another language, by py3langid, whose model is part of its package."""

from __future__ import annotations

import itertools
from functools import lru_cache
from importlib.metadata import version
from typing import TYPE_CHECKING

from pipeline.errors import InputError

if TYPE_CHECKING:
    from py3langid.langid import LanguageIdentifier

UNLIKELY, UNLIKELY_SHORT = 0.002, 0.0007
"""Probability of the wanted language below which a caption is in another one; of fewer than SHORT words.

py3langid's most likely language is wrong for one short English text in eight ("an ultra
conservative", "tiramisu"). Of 6,000 example phrases of WordNet, of 2 to 14 words, English was never
that unlikely, of 102 names of products, dishes and places it was for two ("crème brûlée dessert").
"""
UNLIKELY_WITH_FUNCTION_WORD = 0.04
"""The same for captions with a function word of another language, which is evidence of its own."""
FUNCTION_WORDS = frozenset(
    "und mit ein eine einen einem einer der auf im über unter neben vor ist un une avec dans sur et est uno una "
    "con nel nella sulla su um uma com na een het met och ett på".split()
)
PARTICLES = frozenset("el la los las le les lo il de del della di da do dos du des am en".split())
"""Function words that also occur in names."""
SHORT = 5
LATIN_END = "\u0250"
FEWEST_WORDS = 3
"""Fewer words of Latin letters are names too often."""


def other_language(text: str, language: str) -> bool:
    """Whether a text is hardly in ``language``, an ISO 639-1 code.

    If most letters are Latin, the words with others are not looked at.
    """
    letters = [c for c in text if c.isalpha()]
    words = text.split()
    if not letters:
        return False
    if sum(c < LATIN_END for c in letters) * 2 > len(letters):
        words = [word for word in words if not any(c.isalpha() and c >= LATIN_END for c in word)]
        if len(words) < FEWEST_WORDS and not _has_function_word(words, language):
            return False
    ranked = _identifier().rank(" ".join(words))
    limit = UNLIKELY_SHORT if len(words) < SHORT else UNLIKELY
    if _has_function_word(words, language):
        limit = UNLIKELY_WITH_FUNCTION_WORD
    return bool(ranked[0][0] != language and dict(ranked)[language] < limit)


def other_script(text: str) -> bool:
    """Whether a text has letters, none of them Latin."""
    letters = [c for c in text if c.isalpha()]
    return bool(letters) and all(c >= LATIN_END for c in letters)


def _has_function_word(words: list[str], language: str) -> bool:
    """Whether a caption that should be English has a function word of another language before another word.

    PARTICLES count before a word in lower case only: "El Paso" is a name.
    """
    if language != "en":
        return False
    pairs = list(itertools.pairwise(words))
    return any(a.lower() in FUNCTION_WORDS or (a.lower() in PARTICLES and b[0].islower()) for a, b in pairs)


def check_language(language: str) -> None:
    """Check that the language is known.

    Raises:
        InputError: it is not.
    """
    if language not in _identifier().labels:
        raise InputError(
            f"parse_phrases.language: found {language!r}; want null (any language) or one of "
            + ", ".join(sorted(_identifier().labels))
        )


def detector_version() -> str:
    """Name and version, for fingerprints."""
    return f"py3langid {version('py3langid')}"


@lru_cache(maxsize=1)
def _identifier() -> LanguageIdentifier:
    from py3langid import langid

    return langid.LanguageIdentifier.from_model_file(langid.MODEL_FILE, norm_probs=True)
