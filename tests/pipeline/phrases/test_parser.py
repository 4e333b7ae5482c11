"""The parser's shortcuts change nothing: its tags and lemmas are those of spaCy's plain pipeline."""

import pytest
import spacy
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.config import ParsePhrasesConfig
from pipeline.config.recipes import load_recipe
from pipeline.errors import InputError
from pipeline.phrases import parser as module
from pipeline.phrases.find import caption_skip_reason, find_phrases
from pipeline.phrases.lexicons import FRAME
from pipeline.phrases.parser import Parser, model_name, model_version
from tests.pipeline.phrases.captions import captions

CONFIG = ParsePhrasesConfig()


@pytest.fixture(scope="module")
def plain():
    return spacy.load(model_name(CONFIG), exclude=["ner"])


@pytest.fixture(scope="module")
def ours():
    return Parser(model_name(CONFIG))


@settings(max_examples=250, deadline=None)
@given(st.one_of(captions(20), st.text(max_size=60)))
@example("I'm gonna let's go y'all c'mon, it's somethin' ol' 'em")
@example("there is a dog   and \n two cats\t that those did do")
def test_tags_and_lemmas_are_spacys(plain, ours, caption):
    (want,), (got,) = list(plain.pipe([caption])), list(ours.docs([caption]))
    assert got.text == caption
    assert [(t.text, t.tag_, t.pos_, t.dep_, str(t.morph), t.lemma_) for t in want] == [
        (t.text, t.tag_, t.pos_, t.dep_, str(t.morph), ours.lemma(t)) for t in got
    ]
    assert [(c.start, c.end) for c in want.noun_chunks] == [(c.start, c.end) for c in got.noun_chunks]


def by_the_demos_rule(doc):
    """The phrases as the demo was measured: the first version of this stage, without any of today's shortcuts."""
    for chunk in doc.noun_chunks:
        root, start = chunk.root, chunk.start
        if root.pos_ == "PRON" or root.lemma_.lower() in FRAME:
            continue
        if not any(c.isalpha() for c in root.text) or root.like_url:
            continue
        while start < chunk.end and (doc[start].pos_ == "DET" or doc[start].is_space or doc[start].is_punct):
            start += 1
        if start < chunk.end:
            name = " ".join([*(t.lower_ for t in root.lefts if t.dep_ == "compound"), root.lemma_.lower()])
            yield doc[start : chunk.end].start_char, chunk.end_char, name


def test_the_demo_and_the_fixtures_keep_their_phrases(plain, tmp_path):
    from pipeline.demo.config import DemoDataConfig
    from pipeline.demo.generate import generate_demo
    from pipeline.io.tars import read_tar
    from pipeline.phrases.captions import skip_reason
    from tests.fixtures.crawl import GOOD

    few = dict.fromkeys(
        (
            "detection_scenes",
            "grounding_scenes",
            "attributes_scenes",
            "validation_scenes",
            "evaluation_scenes",
            "absent_scenes",
        ),
        1,
    )
    generate_demo(tmp_path / "demo", DemoDataConfig(crawled_scenes=250, **few))
    shards = [tmp_path / "demo" / "crawl" / "00000.tar", tmp_path / "demo" / "photos" / "00000.tar"]
    texts = [s.files["txt"].decode() for shard in shards for s in read_tar(shard)] + list(GOOD.values())
    texts = [text for text in texts if not skip_reason(text)]
    assert len(texts) > 240
    config = load_recipe("demo").parse_phrases
    found = [p.phrases for p in find_phrases(texts, config)]
    assert found == [list(by_the_demos_rule(doc)) for doc in plain.pipe(texts, batch_size=256)]
    today = ParsePhrasesConfig(nonvisual=("frame",))
    assert not [text for text in texts if caption_skip_reason(text, today)]
    cleaned = [p.phrases for p in find_phrases(texts, today)]
    assert sum(a != b for a, b in zip(found, cleaned, strict=True)) < 0.02 * len(texts)


def test_a_worn_parser_is_replaced_and_finds_the_same(monkeypatch):
    held = module.parser(CONFIG)
    before = list(find_phrases(["a red dog"], CONFIG))
    monkeypatch.setattr(held, "_limit", 0)
    assert held.outgrown and module.parser(CONFIG) is not held
    assert list(find_phrases(["a red dog"], CONFIG)) == before


def test_a_missing_model_is_named():
    with pytest.raises(InputError, match=r"parse_phrases\.spacy_model: en_core_web_xxl is not installed"):
        model_name(ParsePhrasesConfig(spacy_model="en_core_web_xxl"))
    assert model_version(ParsePhrasesConfig(spacy_model="en_core_web_xxl", method="ngrams", rules=2)) == "none"


def test_a_model_of_another_language_is_refused():
    with pytest.raises(InputError, match=r"found en_core_web_sm\w* with language 'de'; want a spaCy package of that"):
        model_name(ParsePhrasesConfig(language="de"))
    assert model_name(ParsePhrasesConfig(language=None)).startswith("en_core_web_sm")
