"""Thread-safe calls of transformers' fast tokenizers."""

from __future__ import annotations

from collections.abc import Sequence
from threading import Lock
from typing import Any
from weakref import WeakKeyDictionary

from pipeline.annotators.windows import Word

_LOCKS: WeakKeyDictionary[Any, Lock] = WeakKeyDictionary()
_LOCKS_LOCK = Lock()


def tokenizer_lock(tokenizer: Any) -> Lock:
    """The lock of a tokenizer, to be held while it is called.

    A call with other padding or truncation than the one before changes the tokenizer itself, which
    raises "Already borrowed" while another thread uses it, or truncates that thread's text.
    """
    with _LOCKS_LOCK:
        return _LOCKS.setdefault(tokenizer, Lock())


def tokenizer_words(tokenizer: Any, caption: str) -> list[Word]:
    """(start, end, tokens) of every word, in order. The tokenizer never merges a word with its neighbours."""
    with tokenizer_lock(tokenizer):
        encoded = tokenizer(
            caption, add_special_tokens=False, truncation=False, verbose=False, return_offsets_mapping=True
        )
    words: list[Word] = []
    last = None
    for word, (start, end) in zip(encoded.word_ids(), encoded["offset_mapping"], strict=True):
        if word == last and words:
            words[-1] = (words[-1][0], end, words[-1][2] + 1)
        else:
            words.append((start, end, 1))
        last = word
    return words


def token_counts(tokenizer: Any, texts: Sequence[str]) -> list[int]:
    """Tokens of each text, without special ones."""
    if not texts:
        return []
    with tokenizer_lock(tokenizer):
        encoded = tokenizer(list(texts), add_special_tokens=False, truncation=False, padding=False, verbose=False)
    return [len(ids) for ids in encoded["input_ids"]]
