"""The word lists: where they come from, what they hold, and what they must not."""

from pipeline.demo.manifest import load_manifest
from pipeline.phrases.lexicons import nonvisual
from pipeline.phrases.wordnet import LIST, SHARE, abstract_nouns, names, names_of_things, nonvisual_nouns

COCO = """
person bicycle car motorcycle airplane bus train truck boat light hydrant sign meter bench bird cat dog horse
sheep cow elephant bear zebra giraffe backpack umbrella handbag tie suitcase frisbee ski snowboard ball kite
bat glove skateboard surfboard racket bottle glass cup fork knife spoon bowl banana apple sandwich orange
broccoli carrot pizza donut cake chair couch plant bed table toilet tv laptop mouse remote keyboard phone
microwave oven toaster sink refrigerator book clock vase scissors drier toothbrush
""".split()

INDEX_SENSE = """\
dog%1:05:00:: 02086723 1 42
dog%1:18:01:: 10042764 2 2
time%1:11:00:: 07324673 1 219
time%1:28:05:: 15160866 2 160
love%1:12:00:: 07558676 1 42
love%1:18:00:: 09869767 3 2
love%2:37:01:: 01779085 1 25
kite%1:21:00:: 13317498 4 0
kite%1:06:00:: 03626573 1 0
ice_cream%1:13:00:: 07630017 1 4
freedom%1:26:00:: 14019101 1 26
freedom%1:26:02:: 14546896 2 1
abience%1:16:00:: 09207087 1 0
malformed line
"""  # WordNet's own lines, some with their counts


def test_a_noun_is_abstract_if_nine_uses_in_ten_are():
    found = {file: words for file, words in abstract_nouns(INDEX_SENSE.splitlines()).items() if words}
    assert found == {"noun.feeling": ["love"], "noun.motive": ["abience"], "noun.state": ["freedom"]}


def test_the_derived_list_has_abstract_heads_and_no_things():
    words = nonvisual_nouns()
    assert {"love", "freedom", "happiness", "idea", "day", "beauty", "size", "quality", "january"} <= words
    everything = nonvisual(("wordnet", "owl_st", "grit", "frame"))
    manifest = load_manifest()
    things = {*COCO, *"shadow smile logo sky water wall hand hair face crowd people tattoo rainbow smoke".split()}
    assert not things & everything
    assert not {*manifest.base_nouns, *manifest.novel_nouns} & everything


def test_lists_are_united():
    assert nonvisual(()) == frozenset()
    assert nonvisual(("grit",)) == {"time", "love", "freedom"}
    assert nonvisual(("owl_st", "grit")) == nonvisual(("owl_st",)) | nonvisual(("grit",))


def test_the_list_carries_its_licence():
    text = LIST.read_text(encoding="utf-8")
    assert f"at least {SHARE:.0%} of the uses" in text
    assert "WordNet 3.1 Copyright 2011 by Princeton University" in text and "Permission to use, copy, modify" in text


def test_names_of_things_begin_with_an_adjective_that_says_which():
    senses = [
        "polar%3:01:00:: 1 1 0", "polar_bear%1:05:00:: 1 1 0", "black%3:00:01:: 1 1 0", "black_cat%1:05:00:: 1 1 0",
        "red%5:00:01:: 1 1 0", "red_blood_cell%1:08:00:: 1 1 0", "old%3:00:01:: 1 1 0", "old_man%1:18:00:: 1 1 0",
        "traffic_light%1:06:00:: 1 1 0", "polar_front%1:19:00:: 1 1 0",
    ]  # fmt: skip
    found = names_of_things(senses)
    assert {n for words in found.values() for n in words} == {"polar_bear", "red_blood_cell"}
    assert found["noun.animal"] == ["polar_bear"]


def test_the_packages_names():
    assert {"polar bear", "hot dog", "red blood cell", "white blood cell", "swimming pool"} <= names()
    assert not {"black cat", "old man", "red car", "small boat"} & names()
    assert 6_500 < len(names()) < 7_500
