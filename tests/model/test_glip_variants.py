"""The method's variants, each by some steps of real training on a tiny network."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from model.grounding import phrase_tokens, positive_map
from tests.model.glip_reference import processor, tiny_model

COLOURS = {"red": (220, 30, 30), "blue": (30, 60, 220), "green": (30, 180, 60)}
CAPTION = "a red box. a blue box. a green box"
SPANS = {"red": [(0, 9)], "blue": [(11, 21)], "green": [(23, 34)]}

VARIANTS = {
    "default": {},
    "no fusion": {"fusion": False},
    "cross entropy": {"alignment_loss": "cross_entropy", "score_aggregation": "sum"},
    "max iou": {"assigner": "max_iou"},
    "hungarian": {"assigner": "hungarian"},
    "two stage": {"head": "two_stage"},
    "two stage, cross entropy, l2, no fusion": {
        "head": "two_stage", "alignment_loss": "cross_entropy", "box_loss": "l2", "fusion": False,
        "score_aggregation": "sum",
    },
}  # fmt: skip

LONG = ("hungarian", "two stage", "two stage, cross entropy, l2, no fusion")
"""Variants whose training takes more than three seconds."""


def scenes(count, seed=0):
    """Images of one coloured box each, its colour and its corners."""
    rng = np.random.RandomState(seed)
    out = []
    for i in range(count):
        image = Image.fromarray(rng.randint(90, 140, (64, 64, 3), dtype=np.uint8))
        x, y, w, h = rng.randint(2, 30), rng.randint(2, 30), rng.randint(18, 30), rng.randint(18, 30)
        colour = list(COLOURS)[i % 3]
        ImageDraw.Draw(image).rectangle((x, y, x + w, y + h), fill=COLOURS[colour])
        out.append((image, colour, [x, y, x + w, y + h]))
    return out


def batch(samples):
    made = processor()
    features = made(images=[s[0] for s in samples], text=[CAPTION] * len(samples), do_resize=False)
    labels = []
    for i, (_, colour, box) in enumerate(samples):
        tokens, missing = phrase_tokens(features["offset_mapping"][i], [SPANS[colour]])
        assert not missing
        length = features["input_ids"].shape[1]
        labels.append({"boxes": torch.tensor([box]).float(), "positive_map": positive_map(tokens, length)})
    return made, features, labels


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n in LONG)) for n in VARIANTS])
def test_training_lowers_the_loss_and_finds_boxes(name):
    # this BERT is random and tiny: the vocabulary's ids go straight in
    from transformers import BertConfig

    text = BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64,
                      max_position_embeddings=256)  # fmt: skip
    model = tiny_model(**{"text_config": text, "drop_block_prob": 0.0, **VARIANTS[name]})
    samples = scenes(6)
    made, features, labels = batch(samples)
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 2e-3)
    losses = []
    for _ in range(25):
        outputs = model(**features, labels=labels)
        optimiser.zero_grad()
        outputs.loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimiser.step()
        losses.append(outputs.loss.item())
    unused = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not unused, "parameters that never learn"
    assert np.mean(losses[-5:]) < 0.75 * np.mean(losses[:3])
    model.eval()
    with torch.inference_mode():
        outputs = model(**features)
    phrases = [[SPANS[c]] for _, c, _ in samples]
    found = made.post_process_grounded_object_detection(outputs, phrases=phrases, threshold=0.0, text=[CAPTION] * 6)
    for result, (_, colour, _) in zip(found, samples, strict=True):
        assert len(result["scores"]) > 0 and torch.isfinite(result["scores"]).all()
        assert (result["scores"] <= 1).all() and set(result["text_labels"]) == {f"a {colour} box"}


def test_cross_entropy_scores_are_probabilities():
    model = tiny_model(alignment_loss="cross_entropy").eval()
    _, features, _ = batch(scenes(2))
    with torch.inference_mode():
        p = model(**features).logits.sigmoid()
    assert (p.sum(-1) < 1).all() and (p.sum(-1) > 0).all()
