"""Prompts and spans: long class lists, captions that are cut, one image with several captions."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model import NonFiniteLossError
from model.grounding import phrase_tokens
from tests.model.glip_reference import processor, tiny_model
from tests.model.golden.seeded import seeded_image

NAMES = [f"{colour} {thing} number {i}" for i in range(12) for colour in ("red", "blue") for thing in ("dog", "kite")]


@pytest.fixture(scope="module")
def network():
    return tiny_model(prior_probability=0.3).eval()


def test_a_class_list_longer_than_the_text_is_chunked_and_merged(network):
    made = processor()
    image = seeded_image(96, 120, 1)
    inputs = made(images=[image], text=[NAMES * 3])
    assert inputs["input_ids"].shape[0] > 1 and inputs["input_ids"].shape[1] <= made.max_text_length
    assert inputs["image_index"].tolist() == [0] * len(inputs["input_ids"])
    with torch.inference_mode():
        outputs = network(**inputs)
    found = made.post_process_grounded_object_detection(outputs, phrases=[NAMES * 3], threshold=0.2)[0]
    # every name has its boxes and its own index, in whichever prompt it stood
    assert set(found["labels"].tolist()) == set(range(len(NAMES) * 3)) and not found["missing_phrases"]
    assert all((NAMES * 3)[k] == t for k, t in zip(found["labels"].tolist(), found["text_labels"], strict=True))
    # a chunk asked alone gives the same boxes as within the long list
    first = made.chunk_names(NAMES * 3)[0]
    with torch.inference_mode():
        alone = network(**made(images=[image], text=[first]))
    one = made.post_process_grounded_object_detection(alone, phrases=[first], threshold=0.2)[0]
    mine = found["labels"] < len(first)
    assert torch.allclose(found["boxes"][mine], one["boxes"], atol=1e-3)
    assert torch.allclose(found["scores"][mine], one["scores"], atol=1e-5)


def test_phrases_beyond_the_text_limit_are_reported(network):
    made = processor()
    made.max_text_length = 12
    caption = "a dog and a cat and a very small bird on a fence"
    spans = [[(0, 5)], [(10, 15)], [(38, 48)], [(0, 5), (40, 47)]]
    inputs = made(images=[seeded_image(96, 120, 1)], text=[caption])
    assert inputs["input_ids"].shape[1] == 12
    with torch.inference_mode():
        outputs = network(**inputs)
    found = made.post_process_grounded_object_detection(outputs, phrases=[spans], threshold=0.01, text=[caption])[0]
    assert found["missing_phrases"] == [2, 3]  # a phrase is whole or gone: its box must not go by half its words
    assert set(found["labels"].tolist()) == {0, 1}


@settings(max_examples=200, deadline=None)
@given(st.text(min_size=1, max_size=60), st.data())
def test_spans_and_tokens_agree_for_any_text(caption, data):
    """A span between tokens' characters has the tokens that share a character with it."""
    offsets = processor().tokenize([caption])["offset_mapping"][0]
    covered = sorted({c for a, b in offsets.tolist() for c in range(a, b)})
    if not covered:
        return
    start = data.draw(st.sampled_from(covered))
    end = data.draw(st.sampled_from([c for c in covered if c >= start])) + 1
    tokens, missing = phrase_tokens(offsets, [[(start, end)]])
    sharing = [i for i, (a, b) in enumerate(offsets.tolist()) if a < b and a < end and b > start]
    assert not missing and tokens[0] == list(range(tokens[0][0], tokens[0][-1] + 1))
    # where several tokens claim one character, the first stands for it
    assert set(tokens[0]) <= set(sharing)
    first, last = offsets[tokens[0][0]].tolist(), offsets[tokens[0][-1]].tolist()
    assert first[0] <= start and last[1] >= end
    # and back: the characters of those tokens cover the span's own
    back = {c for i in tokens[0] for c in range(*offsets[i].tolist())}
    assert {c for c in range(start, end) if c in set(covered)} <= back


def test_several_captions_share_the_backbone(network):
    made = processor()
    image = seeded_image(96, 120, 4)
    captions = ["a dog", "a red kite. a cat", "two birds"]
    features = made(images=[image])
    words = made.tokenize(captions)
    with torch.inference_mode():
        maps = network.encode_image(features["pixel_values"])
        shared = network(
            image_features=maps, image_sizes=features["image_sizes"], image_index=torch.tensor([0, 0, 0]), **words
        )
        each = network(**made(images=[image] * 3, text=captions))
    assert (shared.pred_boxes - each.pred_boxes).abs().max() < 1e-3
    assert (shared.logits - each.logits).abs().max() < 1e-3


def test_text_features_once_for_each_distinct_caption(network):
    made = processor()
    captions = ["a dog. a cat", "a kite", "a dog. a cat", "a kite"]
    distinct = sorted(set(captions))
    inputs = made(images=[seeded_image(96, 120, s) for s in range(4)], text=captions)
    words = made.tokenize(distinct)
    with torch.inference_mode():
        text = network.encode_text(words["input_ids"], words["attention_mask"])
        place = torch.tensor([distinct.index(c) for c in captions])
        once = network(
            pixel_values=inputs["pixel_values"], image_sizes=inputs["image_sizes"],
            text_features=text[place], attention_mask=words["attention_mask"][place],
        )  # fmt: skip
        plain = network(**inputs)
    assert (once.logits - plain.logits).abs().max() < 1e-4


def test_alike_captions_are_encoded_once():
    network, made = tiny_model(prior_probability=0.3).eval(), processor()
    captions = ["a dog. a cat", "a kite", "a dog. a cat", "a dog. a cat"]
    inputs = made(images=[seeded_image(96, 120, s) for s in range(4)], text=captions)
    rows = []
    network.text_encoder.register_forward_hook(
        lambda module, args, kwargs, out: rows.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    with torch.inference_mode():
        together = network(**inputs)
        single = [network(**made(images=[seeded_image(96, 120, s)], text=[captions[s]])) for s in range(4)]
    assert rows[0] == 2
    for i, alone in enumerate(single):
        length = alone.logits.shape[-1]
        assert (together.logits[i, :, : length - 1] - alone.logits[0, :, : length - 1]).abs().max() < 1e-3


def test_a_loss_that_is_not_finite_names_term_and_image():
    network = tiny_model()
    made = processor()
    inputs = made(images=[seeded_image(96, 120, s) for s in range(2)], text=["a dog", "a cat"], do_resize=False)
    length = inputs["input_ids"].shape[1]
    target = {"boxes": torch.tensor([[10.0, 10.0, 60.0, 60.0]]), "positive_map": torch.eye(length)[1:2]}
    broken = {**target, "weights": torch.tensor([float("nan")])}
    with pytest.raises(NonFiniteLossError, match=r"images \[1\] of the batch") as caught:
        network(**inputs, labels=[target, broken])
    assert caught.value.images == [1] and caught.value.terms
