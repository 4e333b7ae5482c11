"""Noun phrases by the real parser: exact spans, roots that can serve as class names, reasons for what goes."""

import itertools

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.config import ParsePhrasesConfig
from pipeline.phrases.cleaning import clean, lower
from pipeline.phrases.find import find_phrases
from tests.pipeline.phrases.captions import captions


def parse(caption, **settings):
    (found,) = find_phrases([caption], ParsePhrasesConfig(**settings))
    return found


def phrases(caption, **settings):
    found = parse(caption, **settings)
    return [(caption[start:end], root) for start, end, root in found.phrases], found.dropped


def texts(caption, **settings):
    return [phrase for phrase, _ in phrases(caption, **settings)[0]]


def test_roots_are_dictionary_forms_with_their_compounds():
    found, _ = phrases("Two red traffic lights next to an old wooden bench and a small dog.")
    assert found == [("Two red traffic lights", "traffic light"), ("old wooden bench", "bench"), ("small dog", "dog")]


def test_what_cannot_be_boxed_is_dropped_for_a_reason():
    found, dropped = phrases("She loves the idea of a photo of her cat")
    assert [root for _, root in found] == ["cat"]
    assert dropped == {"pronoun": 1, "nonvisual": 2}
    everything, dropped = phrases("She loves the idea of a cat", drop_pronouns=False, drop_nonvisual=False)
    assert [root for _, root in everything] == ["she", "idea", "cat"] and not dropped


def test_determiners_stay_if_asked():
    assert phrases("a dog", drop_determiners=False)[0] == [("a dog", "dog")]


@pytest.mark.parametrize(
    ("lists", "kept"),
    [
        (["wordnet"], ["photo", "dog", "time", "collection", "chairs"]),
        (["owl_st"], ["dog", "time", "joy", "collection", "chairs"]),
        (["grit"], ["photo", "dog", "joy", "collection", "chairs"]),
        (["frame"], ["dog", "joy", "chairs"]),
        ([], ["photo", "dog", "time", "joy", "collection", "chairs"]),
    ],
)
def test_each_list_drops_its_own_heads(lists, kept):
    assert texts("A photo of a dog at the time of joy near a collection of chairs", nonvisual=lists) == kept


def test_parts_that_describe_nothing_go_and_the_rest_stays():
    caption = "Red bag $49.99 BUY NOW at www.shop.com, stock photo IMG_2034.jpg near two dogs for 30 dollars"
    found, dropped = phrases(caption)
    assert [phrase for phrase, _ in found] == ["Red bag", "two dogs"]
    assert set(dropped) == {"shop_talk", "price"}  # addresses and file names end segments
    assert len(texts(caption, drop_boilerplate=False)) > 2


@pytest.mark.parametrize(
    ("caption", "pieces"),
    [
        ("A pool and palm trees near a red car", [("pool", "pool"), ("palm trees", "palm tree"), ("red car", "car")]),
        ("the salt and pepper shakers", [("salt", "salt"), ("pepper shakers", "pepper shaker")]),
        ("a black and white cat", [("black and white cat", "cat")]),
    ],
)
def test_conjunctions_are_split_between_things(caption, pieces):
    assert phrases(caption, split_conjunctions=True)[0] == pieces


def test_names_with_an_and_stay_whole():
    assert "Dolce and Gabbana bag" in texts("a Dolce and Gabbana bag on a chair", split_conjunctions=True)


def test_referring_expressions_are_those_of_the_paper():
    caption = "a dog in a field of flowers"  # Kosmos-2, figure 3
    found, dropped = phrases(caption, method="referring", drop_determiners=False)
    assert found == [(caption, "dog")] and dropped == {"contained": 2}
    assert phrases("A photo of " + caption + ".", method="referring")[0] == [("dog in a field of flowers", "dog")]


def test_chunks_with_conjuncts_are_not_expanded():
    assert texts("a cat on a mat and a dog on a rug", method="referring") != ["cat on a mat and a dog on a rug"]
    assert texts("a knife and a fork of silver", method="referring")[0] == "knife"


def test_expressions_end_before_what_describes_nothing():
    for phrase in texts("A small boat on a lake by www.shop.com for $20", method="referring"):
        assert "shop" not in phrase and "$" not in phrase


EVERY_SETTING = [
    {"method": method, "drop_determiners": a, "drop_pronouns": b, "drop_nonvisual": b, "drop_boilerplate": c,
     "split_conjunctions": d, "ngram_stop_words": "ends" if a else "whole", "rules": 3 if c else 2}
    for method, (a, b, c, d) in itertools.product(
        ("noun_chunks", "referring", "ngrams"),
        [(True, True, True, False), (False, False, False, True), (True, False, True, True),
         (False, True, False, False)],
    )
]  # fmt: skip


def check(caption, config):
    (found,) = find_phrases([caption], config)
    spans = [(start, end) for start, end, _ in found.phrases]
    assert spans == sorted(set(spans))
    for start, end, root in found.phrases:
        assert 0 <= start < end <= len(caption) and root.strip()
        phrase = caption[start:end]
        assert phrase.strip() == phrase
        if config.method == "ngrams":
            text = phrase if config.rules == 2 else " ".join(s.text for s in clean(phrase).segments)
            assert root.split() == lower(text).split()
    assert all(n > 0 for n in found.dropped.values())


@settings(max_examples=150, deadline=None)
@example({"method": "ngrams", "rules": 3}, 'AA"Aİ')
@given(st.sampled_from(EVERY_SETTING), st.one_of(st.text(max_size=80), captions()))
def test_any_text_gives_sorted_spans_inside_it(setting, caption):
    check(caption, ParsePhrasesConfig(**setting))


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(EVERY_SETTING), st.lists(captions(), max_size=6))
def test_a_caption_has_the_same_phrases_in_any_company(setting, company):
    config = ParsePhrasesConfig(**setting)
    together = list(find_phrases(company, config))
    assert together == [next(find_phrases([caption], config)) for caption in company]


@settings(max_examples=80, deadline=None)
@given(captions())
def test_referring_expressions_hold_every_noun_chunk_and_none_another(caption):
    chunks = [p[:2] for p in parse(caption, drop_determiners=False).phrases]
    grown = [p[:2] for p in parse(caption, method="referring", drop_determiners=False).phrases]
    assert all(any(a <= start and end <= b for a, b in grown) for start, end in chunks)
    assert not any(a <= c and d <= b for a, b in grown for c, d in grown if (a, b) != (c, d))
