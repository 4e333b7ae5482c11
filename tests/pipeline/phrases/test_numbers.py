"""The number of things that a phrase states, things that stand side by side, and names of several words."""

import pytest

from pipeline.config import ParsePhrasesConfig
from pipeline.phrases.find import find_phrases


def triples(caption, **changes):
    (found,) = find_phrases([caption], ParsePhrasesConfig(**changes))
    return [(caption[start:end], root, found.numbers[start, end]) for start, end, root in found.phrases]


def numbers(caption, **changes):
    return [number for _, _, number in triples(caption, **changes)]


@pytest.mark.parametrize(
    ("caption", "number"),
    [
        ("one number card", 1), ("a dog", 1), ("the dog", 1), ("dog", 1), ("this dog", 1), ("the first car", 1),
        ("many red blood cells", 0), ("dogs", 0), ("the dogs", 0), ("some dogs", 0), ("several cars", 0),
        ("every dog", 0), ("each car", 0),
        ("two dogs", 2), ("the three small cars", 3), ("3 cars", 3), ("twelve red apples", 12), ("1,000 people", 1000),
        ("twenty five dogs", 25), ("two dozen eggs", 24), ("a hundred birds", 100), ("both dogs", 2), ("2 Red Cars", 2),
        ("more than two dogs", 0), ("sheep", 0), ("a sheep", 1), ("two sheep", 2), ("a two-headed dragon", 1),
        ("a pair of shoes", 2), ("a pair of scissors", 1), ("a couple of dogs", 2), ("a dozen eggs", 12),
        ("a Dolce and Gabbana bag", 1), ("a black and white cat", 1), ("pool and palm trees", 0), ("TWO RED CARS", 2),
        ("men", 0), ("two women", 2), ("a 5 star hotel", 1), ("2-3 apples", 0),
        ("lens", 1), ("a camera lens", 1), ("two lenses", 2), ("clothes", 0), ("two 12 oz cans", 2),
        ("size 8 boots", 0), ("size 10 shoes", 0), ("leaves", 0), ("crowd", 1),
    ],
)  # fmt: skip
def test_numbers(caption, number):
    assert numbers(caption) == [number]


def test_expressions_have_the_number_of_their_heads_and_n_grams_none():
    assert numbers("two dogs in a field of flowers", method="referring") == [2]
    (found,) = find_phrases(["two dogs"], ParsePhrasesConfig(method="ngrams"))
    assert found.numbers == {} and len(found.phrases) == 3


@pytest.mark.parametrize(
    ("caption", "phrases"),
    [
        ("one platelet and red blood cells", ["one platelet", "red blood cells"]),
        ("a platelet, a white blood cell and red blood cells", ["platelet", "white blood cell", "red blood cells"]),
        ("many red blood cells, one white blood cell and one platelet",
         ["many red blood cells", "one white blood cell", "one platelet"]),
        ("an eosinophil and many red blood cells", ["eosinophil", "many red blood cells"]),
        ("a knife, two forks and a spoon", ["knife", "two forks", "spoon"]),
        ("a black and white cat", ["black and white cat"]),
        ("two red and blue cars", ["two red and blue cars"]),
        ("salt and pepper shakers", ["salt and pepper shakers"]),
        ("a Dolce and Gabbana bag", ["Dolce and Gabbana bag"]),
    ],
)  # fmt: skip
def test_countable_things_are_split(caption, phrases):
    assert [phrase for phrase, _, _ in triples(caption)] == phrases


@pytest.mark.parametrize(
    ("caption", "roots"),
    [
        ("many red blood cells and two white blood cells", ["red blood cell", "white blood cell"]),
        ("a hot dog and a polar bear", ["hot dog", "polar bear"]),
        ("an electric guitar by a swimming pool", ["electric guitar", "swimming pool"]),
        ("a black cat and a red car and an old man", ["cat", "car", "man"]),
        ("two red traffic lights", ["traffic light"]),
        ("a 5 kg bag by a 10 inch pan", ["bag", "pan"]),
        ("a 5 star hotel and 500 ml water bottles", ["hotel", "water bottle"]),
        ("one number card and two star signs", ["number card", "star sign"]),
        ("leaves", ["leaf"]),
        ("Leaves.", ["leaf"]),
        ("crowd", ["crowd"]),
        ("size 10 shoes", ["shoe"]),
        ("lens", ["lens"]),
        ("see https://t.co/abc", []),
    ],
)
def test_names_of_several_words_are_roots(caption, roots):
    assert [root for _, root, _ in triples(caption)] == roots


def test_names_of_ones_own():
    caption = "two brown bears and a red Number card"
    assert [root for _, root, _ in triples(caption)] == ["bear", "number card"]
    own = {"names": ["brown bear", "Red number card"], "known_names": False}
    assert [root for _, root, _ in triples(caption, **own)] == ["brown bear", "red number card"]
    assert [root for _, root, _ in triples("a polar bear", known_names=False)] == ["bear"]
