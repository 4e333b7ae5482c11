"""Captions as the web has them: exact spans in the caption, no half marks, nothing lost."""

import re
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config import ParsePhrasesConfig
from pipeline.phrases.cleaning import clean, plain_text
from pipeline.phrases.find import caption_skip_reason, find_phrases
from tests.pipeline.phrases.captions import captions, dirty_captions

CONFIG = ParsePhrasesConfig()
MARK = re.compile(r"&(?:#\d+|#x[0-9a-f]+|[a-z]+\d?);|<[^<>]{1,40}>", re.IGNORECASE)
UNSEEN = re.compile("[\x00-\x1f\x7f\xad\u200b-\u200f\u202a-\u202e\u2060-\u2064\ufeff]")
WALLS = re.compile(r"[|•😍😀#]|(?<=\s)[-–—](?=\s)|[a-z]{2}\.[a-z]")


def parse(caption, **changes):
    (found,) = find_phrases([caption], ParsePhrasesConfig(**changes))
    return found


def pairs(caption, **changes):
    return [(caption[start:end], root) for start, end, root in parse(caption, **changes).phrases]


@pytest.mark.parametrize(
    ("caption", "found"),
    [
        ("a cute dog 😍😍 with a ball ⚽", [("cute dog", "dog"), ("ball", "ball")]),
        ("a dog 🐶 puppy", [("dog", "dog"), ("puppy", "puppy")]),
        ("a dog :) and a cat <3", [("dog", "dog"), ("cat", "cat")]),
        ("a red&nbsp;plate &amp; a &quot;blue&quot; cup", [("red&nbsp;plate", "plate"), ("blue&quot; cup", "cup")]),
        ("two caf&eacute;s", [("two caf&eacute;s", "cafés")]),
        ("a &amp;lt;b&amp;gt;big dog", [("big dog", "dog")]),
        ("a &#x1F600; dog", [("dog", "dog")]),
        ("<p>a red car</p><br/>next to a <b>tree</b>", [("red car", "car"), ("tree", "tree")]),
        ("a <a href='x y'>red</a> car", [("red</a> car", "car")]),
        ("a red car <span class=", [("red car", "car")]),
        ("a red [b]car[/b]", [("red [b]car", "car")]),
        ("a dog on the beach #dog #puppylove @doglover", [("dog", "dog"), ("beach", "beach")]),
        ("my #dog on the #beach", [("my #dog", "dog"), ("beach", "beach")]),
        ("a #red #car on the street", [("red #car", "car"), ("street", "street")]),
        ("two #red #cars in a #city #nyc #love", [("two #red #cars", "car"), ("city", "city")]),
        ("a red car #x #y a dog #z", [("red car", "car"), ("dog", "dog")]),
        ("Vintage Leather Sofa | Brown", [("Vintage Leather Sofa", "leather sofa"), ("Brown", "brown")]),
        ("phone case - leather — red strap", [("phone case", "phone case"), ("leather", "leather"),
                                             ("red strap", "strap")]),
        ("pre- and post-war houses", [("pre- and post-war houses", "house")]),
        ("a dog on the grass.a red bird!two cats", [("dog", "dog"), ("grass", "grass"), ("red bird", "bird"),
                                                  ("two cats", "cat")]),
        ("Dr.Smith near a car", [("Dr.Smith", "dr smith"), ("car", "car")]),
        ("a \u200bblack do\u200bg\u200b and a\u00adcat", [("black do\u200bg", "dog")]),
        ("\ufeffa red car\x00", [("red car", "car")]),
        ("a\x00 \x00c\x00a\x00r\x00", [("c\x00a\x00r", "car")]),
        ("A RED CAR PARKED NEXT TO A BLACK DOG", [("RED CAR", "car"), ("BLACK DOG", "dog")]),
        ("BRAND NEW RED SOFAS in a room", [("BRAND NEW RED SOFAS", "sofa"), ("room", "room")]),
        ("Two Red Dogs And Three Cats", [("Two Red Dogs", "dog"), ("Three Cats", "cat")]),
        ("a red car\n\na dog", [("red car", "car"), ("dog", "dog")]),
        ("ＦＵＬＬ ﬁsh tank", [("ＦＵＬＬ ﬁsh tank", "fish tank")]),
        ("a cafe\u0301", [("cafe\u0301", "café")]),
        ("see https://t.co/abc a car", [("car", "car")]),
        ("a phone case http://bit.ly/2xYz", [("phone case", "phone case")]),
        ("press 1\ufe0f\u20e3 button", [("press", "press"), ("button", "button")]),
        ("<style>.a{color:red}</style>a boat", [("boat", "boat")]),
        ('[caption id="x"]a house[/caption]', [("house", "house")]),
        ("Wooden Chair | 45x60cm", [("Wooden Chair", "wooden chair")]),
        ("a dog 犬 and a cat 猫", [("dog", "dog"), ("cat", "cat")]),
        ("RT @user: a cat", [("cat", "cat")]),
    ],
)  # fmt: skip
def test_dirt_goes_and_things_stay(caption, found):
    assert pairs(caption) == found


@pytest.mark.parametrize(
    ("caption", "reason"),
    [
        ("nan", "placeholder"), (" NaN ", "placeholder"), ("None", "placeholder"), ("<NA>", "placeholder"),
        ("&nbsp;nan", "placeholder"), ("[image]", "placeholder"), ("none.", "placeholder"), ("NaN NaN", "placeholder"),
        ("no alt text", "placeholder"), ("El Paso", None),
        ("un chien noir", "not_english"), ("el perro", "not_english"),
        ("Hund und Katze", "not_english"), ("Las Vegas", None), ("sushi and sake", None),
        ("😍😍", "only_marks"), ("#dog #cat", "only_marks"), ("&nbsp;<br>", "only_marks"),
        ("\ufeff\u200b", "only_marks"),
        ("  ", "empty_caption"), ("<p>IMG_2034.jpg</p>", "file_name"), ("https://x.org/a?b=1&amp;c=2", "address"),
        ("Ein schwarzer Hund läuft über die grüne Wiese", "not_english"),
        ("Чёрная кошка сидит на стуле", "not_english"), ("草地上的一只黑狗", "not_english"), ("赤い車", "not_english"),
        ("un perro negro en la playa con una pelota 😍", "not_english"),
        ("a nan bread", None), ("None of the dogs", None), ("tiramisu", None), ("Hotel Sacher Wien", None),
        ("Chateau Margaux 2015 Bordeaux", None), ("spaghetti bolognese", None), ("a calico cat", None),
    ],
)  # fmt: skip
def test_whole_captions_are_left_out_for_a_reason(caption, reason):
    assert caption_skip_reason(caption, CONFIG) == reason


def test_other_languages_may_be_wanted():
    german = "Ein schwarzer Hund läuft über die grüne Wiese neben einem Auto"
    want = {"method": "ngrams", "language": "de"}
    assert caption_skip_reason(german, ParsePhrasesConfig(**want)) is None
    english = "a black dog is running over the green grass"
    assert caption_skip_reason(english, ParsePhrasesConfig(**want)) == "not_in_language"
    assert caption_skip_reason(german, ParsePhrasesConfig(language=None)) is None


def test_short_english_is_not_lost():
    """Captions of tests and of the benchmark, and their first words."""
    from benchmarks.parse_phrases import captions as made

    short = [" ".join(caption.split()[:n]) for caption in made(300) for n in (1, 2, 3, 4, 99)]
    reasons = {caption: caption_skip_reason(caption, CONFIG) for caption in short}
    assert not [caption for caption, reason in reasons.items() if reason == "not_english"]


ENGLISH = Path(__file__).with_name("english_captions.txt").read_text(encoding="utf-8").splitlines()


def test_english_with_foreign_names_is_not_lost():
    """Captions with brands, places, dishes and titles: "eau de parfum spray", "las vegas sign"."""
    assert len(ENGLISH) > 350
    assert not [caption for caption in ENGLISH if caption_skip_reason(caption, CONFIG)]


def test_what_was_cleaned_is_named():
    assert clean("a dog and a cat").kinds == set()
    assert clean("A DOG &amp; a <b>cat</b> 😍 | #x #y").kinds >= {"entities", "tags", "emoji", "separators", "hashtags"}
    assert clean("\ufeffa dog").kinds == {"invisible"}
    assert clean("A RED CAR AND A DOG").kinds == {"capitals"}


def test_names_of_classes_are_plain():
    texts = [
        "red car",
        "red</b> car",
        "red&nbsp;car",
        "re\u200bd car",
        "red\x00 car",
        'red" car',
        "red\n car",
        "red #car",
    ]
    assert {plain_text(text) for text in texts} == {"red car"}
    assert plain_text("dog's T-shirt, no. 3") == "dog's T-shirt, no. 3"


@settings(max_examples=150, deadline=None)
@given(dirty_captions(), st.sampled_from(["noun_chunks", "referring", "ngrams"]))
def test_spans_are_exact_and_cut_no_mark(caption, method):
    found = parse(caption, method=method)
    spans = [(start, end) for start, end, _ in found.phrases]
    assert spans == sorted(set(spans))
    marks = [m.span() for m in MARK.finditer(caption)]
    for start, end, root in found.phrases:
        phrase = caption[start:end]
        assert 0 <= start < end <= len(caption) and phrase == phrase.strip()
        assert not UNSEEN.search(phrase[0] + phrase[-1])
        assert not any(a < edge < b for a, b in marks for edge in (start, end)), phrase
        assert not MARK.search(root) and not UNSEEN.search(root)
        if method != "ngrams":
            assert re.fullmatch(r"[\w\u0300-\u036f][\w\u0300-\u036f '’-]*", root), root
            assert found.numbers[start, end] >= 0


BETWEEN = [
    " | ", " - ", " – ", "—", " 😍 ", "😀", ".", "! ", "...", "<br>", "; ", " #x #y ", " • ", "\n\n", " / ", " -- ",
    " (", " &bull; ", ": ",
]  # fmt: skip
PLAIN = "Two red dogs sleep on the old wooden bench next to a small car, and a bird sits in the tree"


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_what_cannot_be_seen_changes_nothing(data):
    """Entities for letters, invisible characters anywhere, inline tags between words: the same phrases."""
    want, dirty = pairs(PLAIN), []
    for char in PLAIN:
        new = data.draw(st.sampled_from([char] * 12 + [f"&#{ord(char)};", f"&#x{ord(char):x};", f"{char}\u200b",
                                                     f"\u00ad{char}"]))  # fmt: skip
        if char == " ":
            new = data.draw(st.sampled_from([new, " <b>", "</i> ", "&nbsp;", "\u00a0", "\u2003", "  "]))
        dirty.append(new)
    got = pairs("".join(dirty))
    assert [(plain_text(phrase), root) for phrase, root in got] == want


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from(["a red car", "two dogs", "the tree", "a cat"]), min_size=2, max_size=5), st.data())
def test_no_phrase_reaches_over_a_wall(things, data):
    caption = things[0]
    for thing in things[1:]:
        caption += data.draw(st.sampled_from(BETWEEN)) + thing
    assert [plain_text(phrase) for phrase, _ in pairs(caption)] == [
        re.sub(r"^(a|the) ", "", thing) for thing in things
    ]  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(captions())
def test_rules_2_are_the_earlier_ones(caption):
    """Captions as they are: no numbers, and nothing is left out for its language."""
    found = parse(caption, rules=2)
    assert found.numbers == {}
    assert caption_skip_reason("Ein Hund läuft über die Wiese", ParsePhrasesConfig(rules=2)) is None


@pytest.mark.parametrize(
    "unit", ["<a ", "&amp;", "&#", "#a ", "a.b", " - ", "😍 ", "[b", "<!--", "A B ", "@a.", "\x00", "a\n"]
)
def test_no_caption_takes_long(unit):
    started = time.perf_counter()
    clean.__wrapped__(unit * 2000 + "!")
    assert time.perf_counter() - started < 1


def test_an_optional_plural_ends_no_segment():
    (segment,) = clean("a dog and cat(s) on the grass").segments
    assert segment.text.split() == "a dog and cat on the grass".split()
