"""Hard negatives: what a caption excludes, and nothing else."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config import NoisyLabelConfig, PromptConfig
from pipeline.data.records import GroundingRecord, Region
from pipeline.training.hard_negatives import EXCLUSIVE, hard_negatives
from pipeline.training.prompts import phrases_prompt

COLOURS = {word for group in EXCLUSIVE[0] for word in group}


def record_of(caption, *phrases, roots=None):
    """A record whose phrases have a box each; a phrase that occurs twice has the span of its first."""
    regions = []
    for i, phrase in enumerate(phrases):
        start = caption.index(phrase)
        regions.append(Region(
            box=(10 * i, 0, 10 * i + 8, 8), phrase=phrase, tokens_positive=((start, start + len(phrase)),),
            root=roots[i] if roots else None,
        ))  # fmt: skip
    return GroundingRecord(
        key="k", dataset="d", kind="grounding", image_size=(100, 100), caption=caption, regions=tuple(regions)
    )


def all_of(record, nouns=(), tries=60):
    return {n for seed in range(tries) for n in hard_negatives(record, nouns, 20, np.random.default_rng(seed))}


def test_a_colour_is_exchanged_where_every_mention_states_one():
    record = record_of("a red umbrella beside a green umbrella", "red umbrella", "green umbrella")
    found = {tuple(n.split()) for n in all_of(record)}
    assert {noun for _, noun in found} == {"umbrella"}
    assert {colour for colour, _ in found} == COLOURS - {"red", "green"}


@pytest.mark.parametrize(
    ("caption", "phrases"),
    [
        ("a red umbrella beside an umbrella", ["red umbrella"]),  # which may be of any colour
        ("a red umbrella and other umbrellas", ["red umbrella"]),
        ("an umbrella", ["umbrella"]),
        ("a red umbrella beside a big umbrella", ["red umbrella", "big umbrella"]),
    ],
)
def test_a_mention_without_colour_excludes_none(caption, phrases):
    assert not {n for n in all_of(record_of(caption, *phrases)) if set(n.split()) & COLOURS}


def test_words_of_one_meaning_are_not_exchanged_and_others_stay():
    found = all_of(record_of("the small grey wooden box", "small grey wooden box"))
    assert "small grey wooden box" not in found and "little grey wooden box" not in found
    assert "small gray wooden box" not in found
    assert {"large grey wooden box", "small red wooden box", "small grey glass box"} <= found
    assert all(n.endswith(" box") for n in found)


def test_other_nouns_have_the_attributes_of_what_is_there():
    record = record_of("two red kites over a box", "two red kites", "box", roots=["kite", "box"])
    assert all_of(record, ["kite", "boxes", "bicycle", "Kites"]) >= {"red bicycle"}
    assert not {n for n in all_of(record, ["kite", "boxes", "bicycle", "Kites"]) if n.split()[-1] != "bicycle"} - {
        f"two {colour} kites" for colour in COLOURS
    }


WORDS = st.sampled_from(["red", "green", "small", "large", "old"])
PHRASES = st.lists(st.tuples(st.lists(WORDS, max_size=2, unique=True), st.sampled_from(["umbrella", "kite", "box"])),
                   min_size=1, max_size=4)  # fmt: skip


@settings(deadline=None, max_examples=60)
@given(PHRASES, st.integers(0, 10**6))
def test_no_hard_negative_may_be_in_the_image(made, seed):
    phrases = [" ".join([*words, noun]) for words, noun in made]
    record = record_of(" and ".join(f"a {p}" for p in phrases), *phrases)
    groups = {word: (n, m) for n, of in enumerate(EXCLUSIVE) for m, group in enumerate(of) for word in group}
    for negative in hard_negatives(record, ["tree", "kite"], 8, np.random.default_rng(seed)):
        *attributes, noun = negative.split()
        for words, other in made:
            if other == noun:  # each thing of that noun has an attribute that excludes one of these
                assert any(
                    groups[a][0] == groups[w][0] and groups[a] != groups[w] for a in attributes for w in words
                ), (negative, phrases)


def test_the_prompt_has_all_phrases_and_only_their_boxes():
    record = record_of("a red umbrella and a kite", "red umbrella", "kite")
    prompt = phrases_prompt(
        record, PromptConfig(phrases_share=1), NoisyLabelConfig(), np.random.default_rng(0), other_nouns=["bicycle"],
        token_count=lambda text: len(re.findall(r"\w+|\S", text)), max_tokens=50,
    )  # fmt: skip
    texts = prompt.caption.split(". ")
    assert {"red umbrella", "kite"} <= set(texts) and len(texts) > 2
    assert [prompt.caption[slice(*spans[0])] for spans in prompt.spans] == ["red umbrella", "kite"]
