"""Conversion of character spans to tokens and positive maps, and prompts made of class names.

A span is [start, end) in characters (code points) of the caption; a phrase is a list of spans.
Tokens are found by the tokenizer's own offsets, not by a phrase's text. Source: GLIP spec section
9.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

Span = tuple[int, int] | Sequence[int]
SEPARATOR = ". "
_FALLBACK = 2  # characters tried beyond a boundary that has no token of its own


class TokenLookup:
    """Table of the token of every character of one caption.

    offsets: (T, 2) [start, end) per token; special tokens are empty. Spaces, dropped accents and
    text beyond the cut have no token. A character of two tokens belongs to the first, as in the
    tokenizers library.
    """

    def __init__(self, offsets: Iterable[Sequence[int]]):
        pairs = [(int(start), int(end)) for start, end in offsets]
        self.covered = max((end for _, end in pairs), default=0)
        self._token: list[int | None] = [None] * self.covered
        for token, (start, end) in reversed(list(enumerate(pairs))):
            self._token[start:end] = [token] * (end - start)

    def token(self, character: int) -> int | None:
        """Look the token index of a character up; None without one."""
        return self._token[character] if 0 <= character < self.covered else None

    def span(self, start: int, end: int) -> range:
        """Find the tokens of [start, end); empty when an end has no token within two characters.

        The first is tried at start, +1, +2, the last at end-1, -2, -3 (GLIP spec 9.1).
        """
        if end <= start:
            return range(0)
        firsts = (self.token(start + i) for i in range(_FALLBACK + 1))
        lasts = (self.token(end - 1 - i) for i in range(_FALLBACK + 1))
        first, last = (next((t for t in tokens if t is not None), None) for tokens in (firsts, lasts))
        return range(0) if first is None or last is None else range(first, last + 1)

    def phrase(self, spans: Iterable[Span]) -> list[int]:
        """List the sorted tokens of all spans; empty when the text's cut removed one of them."""
        tokens: set[int] = set()
        for start, end in spans:
            own = self.span(int(start), int(end))
            tokens.update(own)
            if not own and int(end) > self.covered:
                return []
        return sorted(tokens)


def phrase_tokens(offsets: Any, phrases: Iterable[Iterable[Span]]) -> tuple[list[list[int]], list[int]]:
    """List the tokens of each phrase of one caption, and the indices of phrases without any.

    offsets: (T, 2) tensor or pairs. A phrase has none when it is cut away or only spaces.
    """
    if isinstance(offsets, Tensor):
        offsets = offsets.tolist()
    lookup = TokenLookup(offsets)
    tokens = [lookup.phrase(spans) for spans in phrases]
    return tokens, [i for i, t in enumerate(tokens) if not t]


def positive_map(tokens: Sequence[Sequence[int]], length: int) -> Tensor:
    """Make a 0/1 float map (n, length): row i is 1 at the tokens of phrase i below `length`."""
    out = torch.zeros(len(tokens), length)
    for i, row in enumerate(tokens):
        out[i, [t for t in row if t < length]] = 1.0
    return out


def clean_name(name: str) -> str:
    """Clean a class name for a prompt: no "(...)", "_" to space, double to single space once.

    Source: GLIP spec 9.1.
    """
    return re.sub(r"\(.*\)", "", name).replace("_", " ").replace("  ", " ")


def prompt_from_names(names: Sequence[str], separator: str = SEPARATOR) -> tuple[str, list[list[tuple[int, int]]]]:
    """Join class names to a caption: ("person. traffic light", [[(0, 6)], [(8, 21)]]), with spans.

    Names are used as they are (see `clean_name`). No separator after the last. Source: GLIP spec
    9.1.
    """
    phrases, start = [], 0
    for name in names:
        phrases.append([(start, start + len(name))])
        start += len(name) + len(separator)
    return separator.join(names), phrases


def chunk_names(names: Sequence[str], tokenizer: Any, max_length: int, max_names: int | None = None) -> list[list[str]]:
    """Group consecutive names to prompts of at most `max_length` tokens and `max_names` names.

    Special tokens count. A name that alone is too long gets a group of its own; its phrase is then
    missing. Source: GLIP spec 9.1.
    """
    if not names:
        return []
    lengths = [len(ids) for ids in tokenizer(list(names), add_special_tokens=False)["input_ids"]]
    separator = len(tokenizer(SEPARATOR.strip(), add_special_tokens=False)["input_ids"])
    chunks: list[list[str]] = [[]]
    used = 2
    for name, length in zip(names, lengths):
        cost = length + (separator if chunks[-1] else 0)
        full = max_names is not None and len(chunks[-1]) >= max_names
        if chunks[-1] and (full or used + cost > max_length):
            chunks.append([])
            used, cost = 2, length
        chunks[-1].append(name)
        used += cost
    return chunks
