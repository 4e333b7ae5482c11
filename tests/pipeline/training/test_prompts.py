"""Detection and pseudo-label records as prompts: spans are right by construction, positives are never cut first."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.grounding import clean_name
from pipeline.config import NoisyLabelConfig, PromptConfig
from pipeline.config.recipes import load_recipe
from pipeline.data.records import GroundingRecord, Region
from pipeline.errors import InputError
from pipeline.training.prompts import detection_prompt, grounding_prompt, is_pseudo, names_prompt

NAMES = tuple(f"thing{i}" if i % 3 else f"long_thing {i} (kind)" for i in range(30))


def words(text: str) -> int:
    return len(text.replace(".", " .").split())


def record(*names: str, **kw) -> GroundingRecord:
    regions = tuple(Region(box=(i, 0, i + 5, 9), phrase=n) for i, n in enumerate(names))
    return GroundingRecord(key="k", dataset="d", kind="detection", image_size=(50, 50), regions=regions, **kw)


@given(
    present=st.lists(st.sampled_from(NAMES), max_size=8),
    negatives=st.integers(0, 40),
    limit=st.integers(8, 80),
    seed=st.integers(0, 100),
)
@settings(max_examples=120, deadline=None)
def test_every_box_points_at_its_name_and_the_prompt_fits(present, negatives, limit, seed):
    got = detection_prompt(
        record(*present), NAMES, PromptConfig(max_negatives=negatives), np.random.default_rng(seed),
        token_count=words, max_tokens=limit,
    )  # fmt: skip
    kept = [r for r in record(*present).regions if r.box[0] in set(got.boxes[:, 0])]
    assert len(kept) == len(got.boxes) == len(present) - got.lost
    for region, [(start, end)] in zip(kept, got.spans, strict=True):
        assert got.caption[start:end] == clean_name(region.phrase)
    assert words(got.caption + ". ") <= limit - 2 or not got.caption
    asked = got.caption.split(". ") if got.caption else []
    assert len(asked) == len(set(asked))
    if negatives == 0:
        assert len(asked) <= len(set(present))


def test_positives_are_placed_before_negatives():
    present = NAMES[:5]
    cost = sum(words(clean_name(n) + ". ") for n in present)
    for seed in range(20):
        got = detection_prompt(
            record(*present),
            NAMES,
            PromptConfig(),
            np.random.default_rng(seed),
            token_count=words,
            max_tokens=cost + 2,
        )
        assert got.lost == 0 and len(got.boxes) == 5


def test_federated_negatives_are_only_the_verified_ones():
    got = detection_prompt(
        record("thing1", verified_absent=("thing2", "thing4")), NAMES, PromptConfig(full_negatives_share=1.0),
        np.random.default_rng(0), token_count=words, max_tokens=256,
    )  # fmt: skip
    assert set(got.caption.split(". ")) == {"thing1", "thing2", "thing4"}


@pytest.mark.parametrize("faults", [{}, {"discard_after_drawing": True}])
def test_what_lost_its_box_is_no_negative(faults):
    got = detection_prompt(
        record("thing1", not_exhaustive=("thing2", "thing4")), NAMES[:5],
        PromptConfig(full_negatives_share=1.0, **faults),
        np.random.default_rng(0), token_count=words, max_tokens=256,
    )  # fmt: skip
    assert "thing1" in got.caption and not {"thing2", "thing4"} & set(got.caption.split(". "))
    assert len(got.caption.split(". ")) == 3


def test_uncertain_names_of_a_teacher_are_neither_positive_nor_negative():
    regions = tuple(
        Region(box=(i, 0, i + 5, 9), phrase=name, score=score, annotator="glip@0", ignore=ignore)
        for i, (name, score, ignore) in enumerate(
            [("thing1", 0.9, False), ("thing2", 0.6, False), ("thing4", 0.3, True)]
        )
    )
    pseudo = GroundingRecord(
        key="k",
        dataset="d",
        kind="detection",
        image_size=(50, 50),
        regions=regions,
        not_exhaustive=("thing4", "thing5"),
    )

    def prompt(**settings):
        return detection_prompt(
            pseudo, NAMES[:8], PromptConfig(full_negatives_share=1.0), np.random.default_rng(0), token_count=words,
            max_tokens=256, noisy=NoisyLabelConfig(**settings),
        )  # fmt: skip

    got = prompt(score_weight=True, regress_above=0.7)
    asked = set(got.caption.split(". "))
    assert {"thing1", "thing2"} < asked and not {"thing4", "thing5"} & asked and "thing7" in asked
    by_name = {got.caption[slice(*spans[0])]: i for i, spans in enumerate(got.spans)}
    assert got.weights[[by_name["thing1"], by_name["thing2"]]].tolist() == pytest.approx([0.9, 0.6])
    assert got.regress[[by_name["thing1"], by_name["thing2"]]].tolist() == [True, False]
    assert got.ignore_boxes.tolist() == [[2, 0, 7, 9]]
    assert {"thing4", "thing5"} <= set(prompt(ignore_uncertain=False).caption.split(". "))


def test_names_that_read_alike_are_one_name():
    """LVIS has "bow_(weapon)" and "bow_(decorative_ribbons)": asked for as "bow", which must not be
    both there and absent."""
    names = ("bow_(weapon)", "bow_(decorative_ribbons)", "cat")
    for seed in range(10):
        got = detection_prompt(
            record(names[0], verified_absent=names[1:]), names, PromptConfig(), np.random.default_rng(seed),
            token_count=words, max_tokens=99,
        )  # fmt: skip
        assert sorted(name.strip() for name in got.caption.split(". ")) in (["bow"], ["bow", "cat"])
        both = detection_prompt(
            record(*names[:2]), names, PromptConfig(max_negatives=0), np.random.default_rng(seed),
            token_count=words, max_tokens=99,
        )  # fmt: skip
        assert both.caption.strip() == "bow" and both.spans[0] == both.spans[1] and both.lost == 0


def test_the_originals_faults_are_options():
    config = PromptConfig(max_negatives=30, full_negatives_share=1.0, background_class=True)
    rng = np.random.default_rng(0)
    got = detection_prompt(record("thing1"), NAMES, config, rng, token_count=words, max_tokens=500)
    assert "background" in got.caption
    fewer = PromptConfig(max_negatives=30, full_negatives_share=1.0, discard_after_drawing=True)
    got = detection_prompt(record("thing1"), NAMES, fewer, rng, token_count=words, max_tokens=500)
    assert len(got.caption.split(". ")) == 30


def test_a_class_outside_the_label_space_is_named():
    with pytest.raises(InputError, match="'zebra' is not among the 30"):
        detection_prompt(
            record("zebra"), NAMES, PromptConfig(), np.random.default_rng(0), token_count=words, max_tokens=99
        )


CAPTION = "a red fish near a key."


def pseudo(score: float = 0.6) -> GroundingRecord:
    return GroundingRecord(
        key="k", dataset="pseudo", kind="grounding", image_size=(50, 50), caption=CAPTION, uncertain=((18, 21),),
        regions=(
            Region(box=(0, 0, 5, 5), phrase="red fish", tokens_positive=((2, 10),), score=score, annotator="t@1",
                   root="fish"),
            Region(box=(9, 9, 20, 20), phrase="key", tokens_positive=((18, 21),), score=0.2, annotator="t@1",
                   ignore=True),
        ),
    )  # fmt: skip


def test_pseudo_labels_carry_weight_ignore_and_uncertainty():
    noisy = NoisyLabelConfig(score_weight=True, regress_above=0.7)
    got = grounding_prompt(pseudo(), noisy, np.random.default_rng(0), token_count=words, max_tokens=99)
    assert got.caption == CAPTION and got.spans == [[(2, 10)]]
    assert got.weights.tolist() == pytest.approx([0.6]) and not got.regress[0]
    assert got.ignore_boxes.tolist() == [[9, 9, 20, 20]] and got.uncertain == [(18, 21)]
    plain = grounding_prompt(
        pseudo(),
        NoisyLabelConfig(ignore_uncertain=False),
        np.random.default_rng(0),
        token_count=words,
        max_tokens=99,
    )
    assert plain.weights.tolist() == [1.0] and plain.regress[0] and plain.uncertain == []


@given(
    seed=st.integers(0, 300),
    limit=st.integers(12, 60),
    other=st.text(st.characters(exclude_categories=["Cs"]), max_size=30),
)
@settings(max_examples=80, deadline=None)
def test_packed_captions_keep_their_spans(seed, limit, other):
    got = grounding_prompt(
        pseudo(), NoisyLabelConfig(caption_negatives=1.0), np.random.default_rng(seed),
        other_caption=lambda rng: other, token_count=words, max_tokens=limit,
    )  # fmt: skip
    assert got.caption[slice(*got.spans[0][0])] == "red fish"
    assert got.caption[slice(*got.uncertain[0])] == "key"


def packed_with(count, **options):
    """How many other captions each of ``count`` prompts got."""
    noisy = NoisyLabelConfig(caption_negatives=1.0, max_caption_negatives=5, **options)
    return [
        grounding_prompt(
            pseudo(), noisy, np.random.default_rng(seed), other_caption=lambda rng: "other", token_count=words,
            max_tokens=99,
        ).caption.count("other")
        for seed in range(count)
    ]  # fmt: skip


def pack(others, limit, count=4):
    """The captions around the record's own, where each draw gives the next of ``others``."""
    noisy = NoisyLabelConfig(caption_negatives=1.0, max_caption_negatives=count, full_caption_share=1.0)
    drawn = iter(others)
    got = grounding_prompt(
        pseudo(), noisy, np.random.default_rng(0), other_caption=lambda rng: next(drawn), token_count=words,
        max_tokens=limit,
    )  # fmt: skip
    assert got.caption[slice(*got.spans[0][0])] == "red fish"
    return {c for c in others if c in got.caption}


def test_a_caption_that_does_not_fit_is_passed_over_and_the_rest_are_tried():
    long, others = "one of very many words " * 20, ["a cup", "a dog on a mat", "a plate"]
    assert pack([others[0], long, *others[1:]], 60) == {*others}
    room = words(CAPTION + ". ") + words("a dog on a mat. ") + words("a cup. ") + 2
    assert pack(["a dog on a mat", "a train on a bridge", "a cup", "a plate"], room) == {"a dog on a mat", "a cup"}


def test_a_caption_is_no_negative_of_itself():
    noisy = NoisyLabelConfig(caption_negatives=1.0)
    got = grounding_prompt(
        pseudo(), noisy, np.random.default_rng(0), other_caption=lambda rng: CAPTION, token_count=words, max_tokens=99,
    )  # fmt: skip
    assert got.caption.count(CAPTION.rstrip(". ")) == 1


def test_a_share_of_the_packed_prompts_have_all_the_captions_there_may_be():
    assert set(packed_with(60)) == {1, 2, 3, 4, 5}
    assert packed_with(20, full_caption_share=1.0) == [5] * 20
    half = packed_with(600, full_caption_share=0.5)  # all of them: 0.5, and a fifth of the rest
    assert half.count(5) / 600 == pytest.approx(0.6, abs=0.06) and half.count(1) / 600 == pytest.approx(0.1, abs=0.04)


@pytest.mark.parametrize("recipe", ["glip_t", "glip_l"])
def test_the_released_recipes_pack_as_the_paper_says(recipe):
    noisy, seen = load_recipe(recipe).student.noisy, []
    for seed in range(2000):
        got = grounding_prompt(
            pseudo(), noisy, np.random.default_rng(seed), other_caption=lambda rng: "other", token_count=words,
            max_tokens=256,
        )  # fmt: skip
        seen.append(got.caption.count("other"))
    share = Counter(seen)
    assert share[0] / 2000 == pytest.approx(0.4, abs=0.04)
    assert share[19] / 2000 == pytest.approx(0.3 + 0.3 / 19, abs=0.04)  # 0.3 with 19, and 0.3 with 1..19
    assert all(share[n] / 2000 == pytest.approx(0.3 / 19, abs=0.015) for n in range(1, 19)) and max(share) == 19


def test_human_labels_are_never_packed():
    human = GroundingRecord(
        key="k", dataset="gold", kind="grounding", image_size=(50, 50), caption=CAPTION,
        regions=(Region(box=(0, 0, 5, 5), phrase="red fish", tokens_positive=((2, 10),)),),
    )  # fmt: skip
    scenes = human.model_copy(update={"uncertain": ((18, 21),)})  # Flickr30k's scenes have no box
    for record in (human, scenes):
        assert not is_pseudo(record)
        got = grounding_prompt(
            record, NoisyLabelConfig(caption_negatives=1.0), np.random.default_rng(1),
            other_caption=lambda rng: "a blue car", token_count=words, max_tokens=99,
        )  # fmt: skip
        assert got.caption == CAPTION


def by_names(record, others, **options):
    return names_prompt(
        record, PromptConfig(full_negatives_share=1.0), NoisyLabelConfig(score_weight=True, **options),
        np.random.default_rng(0), other_names=others, token_count=words, max_tokens=99,
    )  # fmt: skip


def test_head_nouns_become_a_class_prompt_with_other_images_names():
    got = by_names(pseudo(), ["cat", "dog", "cat", "fish", "key", "traffic light"])
    # "key" is in the caption: unsure, so neither asked for nor taught as absent
    assert sorted(got.caption.split(". ")) == ["cat", "dog", "fish", "traffic light"]
    assert got.caption[slice(*got.spans[0][0])] == "fish" and len(got.boxes) == 1
    assert got.weights.tolist() == pytest.approx([0.6]) and got.lost == 0
    assert got.ignore_boxes.tolist() == [[9, 9, 20, 20]] and got.uncertain == []


def test_regions_of_one_noun_share_its_place_and_those_without_a_root_are_counted():
    first = pseudo().regions[0]
    more = (first, first.model_copy(update={"box": (30, 30, 40, 40)}), first.model_copy(update={"root": None}))
    got = by_names(pseudo().model_copy(update={"regions": more}), [])
    assert got.caption == "fish" and got.spans == [[(0, 4)], [(0, 4)]] and got.lost == 1
