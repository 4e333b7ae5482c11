"""Character spans <-> tokens <-> positive maps, and prompts made of class names.

A span is [start, end) in characters (code points) of the caption; a phrase is a list of spans. Tokens are found
through the tokenizer's own offsets, never by looking for a phrase's text. Source: GLIP spec section 9.
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
    """The token of every character of one caption. offsets: (T, 2) [start, end) a token; special tokens are empty.

    Characters without a token (spaces, dropped accents, text beyond the cut) have none. Where two tokens claim a
    character the first has it, as in the tokenizers library.
    """

    def __init__(self, offsets: Iterable[Sequence[int]]):
        pairs = [(int(o[0]), int(o[1])) for o in offsets]
        self.covered = max((end for _, end in pairs), default=0)
        self._token = [-1] * self.covered
        for token in range(len(pairs) - 1, -1, -1):
            start, end = pairs[token]
            for c in range(start, end):
                self._token[c] = token

    def token(self, character: int) -> int | None:
        """Token index of a character, or None."""
        if 0 <= character < self.covered and self._token[character] >= 0:
            return self._token[character]
        return None

    def span(self, start: int, end: int) -> range:
        """Tokens of [start, end); empty when a boundary has no token within two characters.

        The start is tried at start, +1, +2, the end at end-1, -2, -3 (GLIP spec 9.1).
        """
        if end <= start:
            return range(0)
        first = next((t for i in range(_FALLBACK + 1) if (t := self.token(start + i)) is not None), None)
        last = next((t for i in range(_FALLBACK + 1) if (t := self.token(end - 1 - i)) is not None), None)
        return range(0) if first is None or last is None else range(first, last + 1)

    def phrase(self, spans: Iterable[Span]) -> list[int]:
        """Sorted tokens of a phrase: the union of its spans. Empty when a span lost its tokens: a phrase is whole or gone."""
        tokens: set[int] = set()
        for start, end in spans:
            found = self.span(int(start), int(end))
            tokens.update(found)
            if not found and int(end) > self.covered:
                return []
        return sorted(tokens)


def phrase_tokens(offsets: Any, phrases: Iterable[Iterable[Span]]) -> tuple[list[list[int]], list[int]]:
    """Tokens of each phrase of one caption, and the indices of phrases that have none (cut away, or only spaces)."""
    if isinstance(offsets, Tensor):
        offsets = offsets.tolist()
    lookup = TokenLookup(offsets)
    tokens = [lookup.phrase(spans) for spans in phrases]
    return tokens, [i for i, t in enumerate(tokens) if not t]


def positive_map(tokens: Sequence[Sequence[int]], length: int) -> Tensor:
    """(n, length) float 0/1: row i is 1 at the tokens of phrase i; tokens at or beyond `length` are left out."""
    out = torch.zeros(len(tokens), length)
    for i, row in enumerate(tokens):
        out[i, [t for t in row if t < length]] = 1.0
    return out


def clean_name(name: str) -> str:
    """A data set's class name as it goes into a prompt: no "(...)", "_" to space, one pass of double to single space."""
    return re.sub(r"\(.*\)", "", name).replace("_", " ").replace("  ", " ")


def prompt_from_names(names: Sequence[str], separator: str = SEPARATOR) -> tuple[str, list[list[tuple[int, int]]]]:
    """("person. traffic light", [[(0, 6)], [(8, 21)]]): the caption of a class list and each class's span.

    Names are taken as they are (see `clean_name`). No separator after the last. Source: GLIP spec 9.1.
    """
    phrases, start = [], 0
    for name in names:
        phrases.append([(start, start + len(name))])
        start += len(name) + len(separator)
    return separator.join(names), phrases


def chunk_names(names: Sequence[str], tokenizer: Any, max_length: int, max_names: int | None = None) -> list[list[str]]:
    """Consecutive groups of names whose prompts fit `max_length` tokens, specials included (and `max_names` names).

    A name that alone does not fit gets a chunk of its own and is then reported as missing. Source: GLIP spec 9.1.
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
