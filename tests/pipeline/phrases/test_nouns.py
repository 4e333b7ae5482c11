"""Noun phrases by the real parser: exact spans, roots that can serve as class names, reasons for what goes."""

from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config import ParsePhrasesConfig
from pipeline.phrases.find import find_phrases as parse


def phrases(caption, **settings):
    (found,) = parse([caption], ParsePhrasesConfig(**settings))
    return [(caption[start:end], root) for start, end, root in found.phrases], found.dropped


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


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=80))
def test_any_text_gives_spans_inside_it(caption):
    (found,) = parse([caption], ParsePhrasesConfig())
    for start, end, root in found.phrases:
        assert 0 <= start < end <= len(caption) and root
