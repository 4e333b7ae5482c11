"""Detection of captions in another language, by py3langid, whose model is part of its package."""

from __future__ import annotations

from functools import lru_cache
from importlib.metadata import version
from typing import TYPE_CHECKING

import regex

from pipeline.errors import InputError
from pipeline.phrases.lexicons import ARTICLES, FUNCTION_WORDS

if TYPE_CHECKING:
    from py3langid.langid import LanguageIdentifier

UNLIKELY, UNLIKELY_SHORT, UNLIKELY_WITH_FUNCTION_WORD = 0.002, 0.0001, 0.04
"""Probability of the wanted language below which a caption is in another one; the same of fewer than SHORT words, and
of those with a function word of another language, which is evidence of its own.

py3langid's most likely language is wrong for one short English text in eight ("an ultra conservative", "tiramisu").
"""
SHORT, FEWEST_WORDS = 5, 3
"""Fewer words of Latin letters are not judged without a function word: they are names too often."""
_LETTER, _NOT_LATIN = regex.compile(r"\p{L}"), regex.compile(r"[\p{L}--\p{Latin}]", regex.VERSION1)
_FUNCTION_WORD = regex.compile(rf"(?<!\S)(?i:{'|'.join(FUNCTION_WORDS)})\s|^(?i:{'|'.join(ARTICLES)})\s\p{{Ll}}\S+$")


def other_language(text: str, language: str) -> bool:
    """Whether a text is hardly in ``language``, an ISO 639-1 code.

    If most letters are Latin, the words with others are not looked at.
    """
    letters = _LETTER.findall(text)
    latin = len(letters) > 2 * len(_NOT_LATIN.findall(text))
    words = [word for word in text.split() if not (latin and _NOT_LATIN.search(word))]
    function_word = language == "en" and bool(_FUNCTION_WORD.search(" ".join(words)))
    if not letters or (latin and len(words) < FEWEST_WORDS and not function_word):
        return False
    ranked = _identifier().rank(" ".join(words))
    limit = UNLIKELY_SHORT if len(words) < SHORT else UNLIKELY
    limit = UNLIKELY_WITH_FUNCTION_WORD if function_word else limit
    return bool(ranked[0][0] != language and dict(ranked)[language] < limit)


def other_script(text: str) -> bool:
    """Whether a text has letters, none of them Latin."""
    return 0 < len(_LETTER.findall(text)) == len(_NOT_LATIN.findall(text))


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
