"""N-grams: OWL-ST's queries as spans of the caption."""

from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config import ParsePhrasesConfig
from pipeline.phrases.lexicons import OWL_ST, STOP_WORDS
from pipeline.phrases.ngrams import ngrams
from tests.pipeline.phrases.captions import captions


def texts(caption, **settings):
    found = ngrams(caption, ParsePhrasesConfig(method="ngrams", **settings))
    return [caption[start:end] for start, end, _ in found.phrases]


def test_stop_words_end_no_ngram():
    assert texts("a dog in the park") == ["dog", "dog in the park", "park"]


def test_owl_st_drops_those_of_stop_words_alone():
    found = texts("a dog in the park", ngram_stop_words="whole")
    words = ["a", "dog", "in", "the", "park"]
    every = {" ".join(words[i:j]) for i in range(5) for j in range(i + 1, 6)}
    assert set(found) == every - {"a", "in", "the", "in the"}


def test_generic_words_marks_and_shop_talk_are_walls():
    assert texts("Photo of red kites, wallpaper hd: two dogs - BUY NOW") == [
        "red", "red kites", "kites", "two", "two dogs", "dogs",
    ]  # fmt: skip
    assert "Photo of red kites" in texts("Photo of red kites", drop_nonvisual=False)


def test_longest_and_most_ngrams():
    caption = " ".join(f"word{i}" for i in range(12))
    assert max(len(t.split()) for t in texts(caption)) == 10
    assert len(texts(caption, max_ngram=2)) == 12 + 11
    few = ngrams(caption, ParsePhrasesConfig(method="ngrams", max_ngrams=15))
    assert len(few.phrases) == 15 and few.dropped == {"too_many_ngrams": 12 * 13 // 2 - 3 - 15}
    assert sum(1 for start, end, _ in few.phrases if " " not in caption[start:end]) == 12


@settings(max_examples=200, deadline=None)
@given(st.one_of(captions(20), st.text(max_size=60)), st.integers(1, 12), st.sampled_from(["ends", "whole"]))
def test_no_ngram_breaks_the_rules(caption, longest, stop_words):
    found = ngrams(caption, ParsePhrasesConfig(method="ngrams", max_ngram=longest, ngram_stop_words=stop_words))
    for _, _, root in found.phrases:
        words = root.split()
        assert 1 <= len(words) <= longest and not set(words) & OWL_ST
        assert not set(words) <= STOP_WORDS
        if stop_words == "ends":
            assert words[0] not in STOP_WORDS and words[-1] not in STOP_WORDS
