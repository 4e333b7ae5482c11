"""A caption's words as a fast tokenizer of transformers sees them."""

from __future__ import annotations

from typing import Any

from pipeline.annotators.windows import Word


def tokenizer_words(tokenizer: Any, caption: str) -> list[Word]:
    """(start, end, tokens) of every word, in order. A word is what the tokenizer never merges with its neighbours."""
    encoded = tokenizer(caption, add_special_tokens=False, truncation=False, verbose=False, return_offsets_mapping=True)
    words: list[Word] = []
    last = None
    for word, (start, end) in zip(encoded.word_ids(), encoded["offset_mapping"], strict=True):
        if word == last and words:
            words[-1] = (words[-1][0], end, words[-1][2] + 1)
        else:
            words.append((start, end, 1))
        last = word
    return words
