"""Teachers of other families: transformers' real classes at a tiny size, through the one protocol."""

from __future__ import annotations

import json
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file, save_file
from scipy.optimize import linear_sum_assignment
from transformers import AutoModelForZeroShotObjectDetection, AutoProcessor

from pipeline.annotators import owl
from pipeline.annotators.base import TEACHERS, RegionPredictions, load_annotator
from pipeline.annotators.grounding_dino import closed
from pipeline.config import PseudoLabelConfig
from pipeline.errors import InputError
from tests.fixtures.annotators import predict_images
from tests.pipeline.annotators.conftest import ALL, CAPTION, MAKERS, SPANS, picture

OTHERS = sorted({*MAKERS} - {"sam3_video"})  # that is sam3 in a larger folder
DINOS = ["grounding-dino", "mm-grounding-dino"]
OWLS = ["owlv2", "owlvit"]
SQUARES = [*OWLS, "omdet-turbo", "florence2", "sam3"]
"""Families that squeeze or pad an image to a square."""
EVERY = ["glip", *OTHERS]


def one_query(annotator, caption=CAPTION, spans=SPANS):
    (query,), missing = annotator.queries(caption, spans)
    assert missing == []
    return query


def same(a: RegionPredictions, b: RegionPredictions, tolerance: float = 2e-3) -> None:
    """The same regions in any order, up to rounding: each of ``a`` has one of ``b`` of its own."""
    assert len(a.score) == len(b.score) > 0
    columns = [
        np.concatenate([f.phrase[:, None] * 1e4, f.boxes, f.score[:, None], f.token_min[:, None]], 1) for f in (a, b)
    ]
    distance = np.abs(columns[0][:, None] - columns[1][None]).max(-1)
    assert distance[linear_sum_assignment(distance)].max() < tolerance


def test_every_family_is_here(folders):
    assert {*folders} == {*EVERY, "sam3_video"} and {*folders, "http"} == {*TEACHERS.builtin}  # test_http.py
    for name in folders:
        annotator = load_annotator(folders[name], ALL)
        assert annotator.name == name.removesuffix("_video") and len(annotator.revision) == 12


@pytest.mark.parametrize("name", EVERY)
def test_a_batch_is_answered_as_its_images_are_one_by_one(load, name):
    annotator = load(name)
    asked = [("two dogs", [(0, 8), (4, 8)]), (CAPTION, SPANS), ("a blue bicycle near the old house", [(2, 14)])]
    queries = [one_query(annotator, *a) for a in asked]
    images = [picture(i) for i in range(3)]
    together = predict_images(annotator, images, queries)
    for image, query, found in zip(images, queries, together, strict=True):
        assert set(found.phrase.tolist()) <= set(query.phrases)
        same(found, predict_images(annotator, [image], [query])[0])


@pytest.mark.parametrize("name", SQUARES)
def test_images_of_any_shape_share_a_batch(load, name):
    annotator = load(name)
    images = [picture(0, (120, 40)), picture(1, (40, 70)), picture(2, (33, 33))]
    queries = [one_query(annotator, *q) for q in ((CAPTION, SPANS), ("two dogs and a cat", [(0, 8)]), (CAPTION, SPANS))]
    for image, query, found in zip(images, queries, predict_images(annotator, images, queries), strict=True):
        same(found, predict_images(annotator, [image], [query])[0])


@pytest.mark.parametrize("name", DINOS)
def test_grounding_dino_scores_as_its_own_processor(folders, name):
    annotator = load_annotator(folders[name], ALL.model_copy(update={"score_agg": "max"}))
    image = picture(3, (100, 60))
    ours = predict_images(annotator, [image], [one_query(annotator, CAPTION, [(0, len(CAPTION))])])[0]
    network = AutoModelForZeroShotObjectDetection.from_pretrained(folders[name]).eval()
    processor = AutoProcessor.from_pretrained(folders[name])
    inputs = processor(images=image, text=[CAPTION.lower()], return_tensors="pt")
    with torch.inference_mode():
        outputs = network(**inputs)
    theirs = processor.post_process_grounded_object_detection(outputs, threshold=-1.0, target_sizes=[(60, 100)])[0]
    words = inputs["input_ids"].shape[1]
    in_phrase = [0 < int(t) < words - 1 for t in outputs.logits[0].argmax(-1)]  # else [CLS] or [SEP] scores best
    boxes = theirs["boxes"].numpy().clip(0, [100, 60, 100, 60])
    assert sum(in_phrase) >= 3
    for box, score, defined in zip(boxes, theirs["scores"].tolist(), in_phrase, strict=True):
        distance = np.abs(ours.boxes - box).max(1)
        assert distance.min() < 1e-3
        if defined:
            assert ours.score[distance < 1e-3] == pytest.approx(score, abs=1e-5)


@pytest.mark.parametrize("name", OWLS)
@pytest.mark.parametrize("size", [(100, 60), (50, 90), (64, 64)])
def test_owl_scores_as_its_own_processor(folders, load, name, size):
    annotator, image = load(name), picture(3, size)
    ours = predict_images(annotator, [image], [one_query(annotator)])[0]
    network = AutoModelForZeroShotObjectDetection.from_pretrained(folders[name]).eval()
    processor = AutoProcessor.from_pretrained(folders[name])
    texts = [CAPTION[start:end] for start, end in SPANS]
    with torch.inference_mode():
        outputs = network(**processor(images=image, text=[texts], return_tensors="pt"))
    target = [(image.height, image.width)]
    theirs = processor.post_process_grounded_object_detection(outputs, threshold=0.0, target_sizes=target)[0]
    matched = 0
    for box, score, label in zip(theirs["boxes"].numpy(), theirs["scores"].tolist(), theirs["labels"], strict=True):
        box = box.clip(0, [*size, *size])
        if box[2] <= box[0] or box[3] <= box[1]:
            continue  # beside the image, in the padding
        mine = (ours.phrase == int(label)) & (np.abs(ours.boxes - box).max(1) < 1e-3)
        assert ours.score[mine] == pytest.approx(score, abs=1e-5)
        matched += 1
    assert matched >= 4


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("size", [(120, 40), (40, 120), (77, 53)])
def test_boxes_are_in_pixels_of_the_stored_image(load, name, size):
    annotator, (width, height) = load(name), size
    image, query = picture(5, size), one_query(annotator)
    found = predict_images(annotator, [image], [query])[0]
    assert (found.boxes[:, 0] < found.boxes[:, 2]).all() and (found.boxes[:, 1] < found.boxes[:, 3]).all()
    assert (found.boxes >= 0).all() and (found.boxes[:, 2] <= width).all() and (found.boxes[:, 3] <= height).all()
    if name == "florence2":  # its boxes are whole pixels, of any size
        return
    # a JPEG decoded at half its size, told the size as it is stored
    twice = annotator.prepare(image, (2 * height, 2 * width))
    large = annotator.predict(annotator.collate([twice], [query]))[0]
    if annotator.shape(width, height) == annotator.shape(2 * width, 2 * height):  # the same pixels, then
        expected = 2 * found.boxes
        if name == "glip":  # it names the last pixel of an image of twice the pixels, too
            inside = found.boxes[:, 2:] < [width, height]
            expected[:, 2:] = np.where(inside, expected[:, 2:] - 1, large.boxes[:, 2:])
        same(large, replace(found, boxes=expected), 5e-3)
    else:
        assert large.boxes[:, 2].max() > width or large.boxes[:, 3].max() > height


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("size", [(120, 40), (40, 120), (77, 53), (9, 300), (1, 500), (500, 1)])
def test_the_network_sees_images_at_the_stated_shape(load, name, size):
    annotator = load(name)
    prepared = annotator.prepare(picture(0, size), (size[1], size[0]))
    assert tuple(prepared.pixels.shape[-2:]) == annotator.shape(*size) and prepared.size == (size[1], size[0])


@pytest.mark.parametrize("name", OTHERS)
def test_pixels_are_those_of_the_processor(folders, load, name):
    annotator, image = load(name), picture(0, (100, 60))
    batch = annotator.collate([annotator.prepare(image, (60, 100))], [one_query(annotator)])
    pixels = batch.inputs.network["pixel_values"] if name in DINOS else batch.inputs.pixels
    theirs = AutoProcessor.from_pretrained(folders[name]).image_processor(image, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(pixels, theirs)


def test_a_huge_image_is_reduced_before_owlv2_pads_it(folders, load):
    image = picture(0, (50, 700))
    ours = load("owlv2").prepare(image, (700, 50)).pixels
    theirs = AutoProcessor.from_pretrained(folders["owlv2"]).image_processor(image, return_tensors="pt")
    assert (ours - theirs["pixel_values"][0]).abs().mean() < 0.02


@pytest.mark.parametrize("name", OTHERS)
def test_nothing_below_the_floor_and_all_above_it(load, name):
    annotator = load(name)
    everything = predict_images(annotator, [picture(0)], [one_query(annotator)])[0]
    floor = float(np.median(everything.score))
    strict = load(name, ALL.model_copy(update={"floor": floor}))
    found = predict_images(strict, [picture(0)], [one_query(strict)])[0]
    assert (found.score > floor).all() and len(found.score) == (everything.score > np.float32(floor)).sum() > 0


@pytest.mark.parametrize("name", OTHERS)
def test_regions_of_a_phrase_overlap_little_and_are_few(load, name):
    from torchvision.ops import box_iou

    everything = predict_images(load(name), [picture(0)], [one_query(load(name))])[0]
    annotator = load(name, ALL.model_copy(update={"nms_threshold": 0.2}))
    found = predict_images(annotator, [picture(0)], [one_query(annotator)])[0]
    few = load(name, ALL.model_copy(update={"nms_threshold": 0.2, "max_regions_per_phrase": 2}))
    cut = predict_images(few, [picture(0)], [one_query(few)])[0]
    crowded = False
    for phrase in range(len(SPANS)):
        mine = found.phrase == phrase
        overlaps = box_iou(*[torch.from_numpy(found.boxes[mine])] * 2).triu(1)
        assert overlaps.max() <= 0.2
        crowded |= bool(
            (box_iou(*[torch.from_numpy(everything.boxes[everything.phrase == phrase])] * 2).triu(1) > 0.2).any()
        )
        best = everything.score[everything.phrase == phrase].max()
        assert found.score[mine].max() == pytest.approx(best)
        assert sorted(cut.score[cut.phrase == phrase]) == pytest.approx(sorted(found.score[mine])[-2:])
    assert (len(found.score) < len(everything.score)) == crowded


@pytest.mark.parametrize("name", OTHERS)
def test_evidence_is_what_the_teacher_has(load, name):
    annotator = load(name)
    found = predict_images(annotator, [picture(0)], [one_query(annotator)])[0]
    assert np.isnan(found.centerness).all() and found.score.dtype == found.centerness.dtype == np.float32
    assert (found.token_min <= found.token_mean + 1e-6).all() and (found.token_mean <= found.token_max + 1e-6).all()
    if name == "sam3":  # a phrase that may be absent
        assert (found.score < found.token_mean).all() and (found.score > 0).all()
    else:
        np.testing.assert_allclose(found.score, found.token_mean, atol=1e-6)  # score_agg: mean
    if name in (*OWLS, "sam3", "omdet-turbo"):  # a phrase has one score, whatever its tokens
        assert (found.token_min == found.token_mean).all() and (found.token_max == found.token_mean).all()
    else:
        assert (found.token_min < found.token_max).any()


@pytest.mark.parametrize("name", DINOS)
@pytest.mark.parametrize(("agg", "column"), [("max", "token_max"), ("mean", "token_mean")])
def test_score_agg_says_how_tokens_make_a_score(load, name, agg, column):
    annotator = load(name, ALL.model_copy(update={"score_agg": agg}))
    found = predict_images(annotator, [picture(0)], [one_query(annotator)])[0]
    np.testing.assert_allclose(found.score, getattr(found, column), atol=1e-6)


TRICKY = [
    "İstanbul", "ΣΑΣ", "ﬁsh", "Straße", "naïve", "cafe\u0301", "猫", "🙂", "ẞ", "ŉ", "Ångström", "dog's", "half-open",
    "９", "½",
]  # fmt: skip


def spaced(words: list[str]) -> tuple[str, list[tuple[int, int]]]:
    """The words with spaces between them, and the span of each."""
    ends = np.cumsum([len(word) + 1 for word in words]).tolist()
    return " ".join(words), [(end - 1 - len(word), end - 1) for word, end in zip(words, ends, strict=True)]


@pytest.mark.parametrize("name", DINOS)
@settings(max_examples=50, deadline=None)
@given(words=st.lists(st.sampled_from(TRICKY), min_size=1, max_size=24))
def test_spans_of_unicode_captions_reach_their_tokens(folders, name, words):
    """Lower-casing changes the length of İ and ẞ; accents, ligatures and full-width letters are rewritten."""
    annotator = load_annotator(folders[name], ALL)
    tokenizer = annotator._tokenizer
    queries, missing = annotator.queries(*spaced(words))
    assert not missing
    for query in queries:
        batch = annotator.collate([annotator.prepare(picture(0), (60, 90))], [query])
        ids = batch.inputs.network["input_ids"][0]
        for phrase, (a, b), tokens in zip(query.phrases, query.spans, batch.inputs.tokens[0], strict=True):
            assert query.text[a:b] == words[phrase]
            assert ids[tokens].tolist() == tokenizer(words[phrase], add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("name", OWLS)
def test_phrases_are_queries_as_the_processor_makes_them(folders, load, name):
    annotator = load(name)
    words = [w for w in TRICKY if len(w.encode()) < 12]
    query = one_query(annotator, *spaced(words))
    batch = annotator.collate([annotator.prepare(picture(0), (60, 90))], [query])
    theirs = AutoProcessor.from_pretrained(folders[name])(text=[words], return_tensors="pt")["input_ids"]
    assert torch.equal(batch.inputs.texts["input_ids"][batch.inputs.rows[0]], theirs)


@pytest.mark.parametrize("name", DINOS)
def test_a_class_list_is_asked_as_the_processor_writes_it(folders, load, name):
    annotator, names = load(name), ["Red Car", "traffic light", "dog"]
    (query,) = annotator.class_queries(names)
    batch = annotator.collate([annotator.prepare(picture(0), (60, 90))], [query])
    theirs = AutoProcessor.from_pretrained(folders[name])(text=[names], images=picture(0), return_tensors="pt")
    assert torch.equal(batch.inputs.network["input_ids"], theirs["input_ids"])
    assert [query.text[a:b] for a, b in query.spans] == names


@pytest.mark.parametrize(
    ("text", "wanted"), [("a dog", "a dog."), ("a dog. ", "a dog. "), ("a dog?", "a dog?."), ("", ".")]
)
def test_texts_end_with_a_stop(text, wanted):
    assert closed(text) == wanted


@pytest.mark.parametrize("name", [*DINOS, "glip"])
def test_long_captions_are_asked_in_windows(load, name):
    annotator = load(name)
    nouns = ["red car", "small tree", "Straße", "umbrella"]
    caption, spans = "", []
    for i in range(40):
        spans.append((len(caption) + 4, len(caption) + 4 + len(nouns[i % 4])))
        caption += f"the {nouns[i % 4]} and "
    queries, missing = annotator.queries(caption, spans)
    limit = 32 if name in DINOS else 64
    assert missing == [] and len(queries) > 3
    asked = [p for q in queries for p in q.phrases]
    assert sorted(asked) == list(range(40))
    for query in queries:
        assert query.tokens <= limit
        for phrase, (a, b) in zip(query.phrases, query.spans, strict=True):
            assert query.text[a:b] == caption[slice(*spans[phrase])]
    found = [predict_images(annotator, [picture(0)], [q])[0] for q in queries]
    if name in DINOS:  # no text was cut: every phrase has its tokens, and boxes
        batches = [annotator.collate([annotator.prepare(picture(0), (60, 90))], [q]) for q in queries]
        assert all(b.inputs.network["input_ids"].shape[1] <= limit for b in batches)
        assert all(tokens for b in batches for tokens in b.inputs.tokens[0])
        assert set(np.concatenate([f.phrase for f in found]).tolist()) == set(range(40))


@pytest.mark.parametrize("name", OWLS)
def test_phrases_beyond_the_query_limit_are_missing(load, name):
    annotator = load(name)
    caption = "a red car near " + "incomprehensible " * 2 + "dog   "
    spans = [(2, 9), (15, 48), (0, 5), (caption.index("dog") + 4, len(caption))]  # the last: spaces alone
    (query,), missing = annotator.queries(caption, spans)
    assert missing == [1, 3] and query.phrases == (0, 2) and query.spans == ((2, 9), (0, 5))
    assert annotator.queries(caption, spans[1:2]) == ([], [0])
    assert set(predict_images(annotator, [picture(0)], [query])[0].phrase.tolist()) == {0, 2}
    with pytest.raises(InputError, match=r"incomprehensible.* tokens"):
        annotator.class_queries(["dog", "incomprehensible thing"])


@pytest.mark.parametrize("name", OWLS)
def test_many_queries_go_in_parts_without_a_trace(load, name, monkeypatch):
    annotator = load(name)
    names = ["red car", "tree", "dog", "cat", "old house", "tree", "umbrella"]
    (query,) = annotator.class_queries(names)
    (short,) = annotator.class_queries(names[:3])
    whole = predict_images(annotator, [picture(0), picture(1)], [query, short])
    monkeypatch.setattr(owl, "PHRASES_AT_ONCE", 2)
    for parts, once in zip(predict_images(annotator, [picture(0), picture(1)], [query, short]), whole, strict=True):
        same(parts, once, 1e-4)
    assert set(whole[0].phrase.tolist()) == set(range(7)) and set(whole[1].phrase.tolist()) == {0, 1, 2}


@pytest.mark.parametrize("name", EVERY)
def test_no_phrases_no_regions(load, name):
    annotator = load(name)
    queries, _ = annotator.queries("nothing here", [])
    for query in queries:
        assert len(predict_images(annotator, [picture(0)], [query])[0].score) == 0


@pytest.mark.parametrize("name", sorted({*OTHERS} - {"florence2"}))  # it writes another text
def test_bf16_moves_scores_a_little(load, name):
    exact = predict_images(load(name), [picture(0)], [one_query(load(name))])[0]
    annotator = load(name, ALL.model_copy(update={"precision": "bf16"}))
    half = predict_images(annotator, [picture(0)], [one_query(annotator)])[0]
    assert len(half.score) == len(exact.score)
    assert np.abs(np.sort(half.score) - np.sort(exact.score)).mean() < 0.06
    assert not np.array_equal(np.sort(half.score), np.sort(exact.score))


def test_pixels_that_are_normalised_on_the_device_give_the_same_regions(load):
    """As GPUs get them: bytes, a quarter as many."""
    annotator, other = load("glip"), load("glip", ALL.model_copy(update={"batch_size": 3}))
    images, queries = [picture(0), picture(1, (60, 90))], [one_query(annotator)] * 2
    other.as_bytes = True
    ready = [other.prepare(image, image.size[::-1]) for image in images]
    sent = other.collate(ready, queries).inputs
    assert sent["pixel_values"].dtype == torch.uint8
    pixels = other._processor.image_processor.normalize_bytes(sent["pixel_values"], sent["image_sizes"])
    assert torch.equal(pixels, annotator.collate(ready, queries).inputs["pixel_values"])
    for a, b in zip(predict_images(other, images, queries), predict_images(annotator, images, queries), strict=True):
        same(a, b, 1e-3)  # the same pixels in another order in memory, so other kernels on some processors


def test_image_size_is_a_setting(load):
    dino = load("grounding-dino", PseudoLabelConfig(image_size=64, max_image_size=80))
    assert dino.shape(200, 100) == (40, 80) and dino.shape(100, 100) == (64, 64)
    for name in OWLS:
        annotator = load(name, ALL.model_copy(update={"image_size": 50}))  # a multiple of the patch, 8, at most
        assert annotator.shape(200, 100) == (48, 48)
        found = predict_images(annotator, [picture(0, (100, 60))], [one_query(annotator)])[0]
        assert len(found.score) > 0 and (found.boxes[:, 3] <= 60).all()
        with pytest.raises(InputError, match="less than one patch"):
            load(name, ALL.model_copy(update={"image_size": 7}))
    for name in ("omdet-turbo", "florence2", "sam3"):
        with pytest.raises(InputError, match=r"image_size: found 50; want (32|64) pixels"):
            load(name, ALL.model_copy(update={"image_size": 50}))


@pytest.fixture
def restless_threads():
    """Threads take turns a thousand times as often."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(before / 1000)
    yield
    sys.setswitchinterval(before)


@pytest.mark.parametrize("name", EVERY)
def test_any_thread_may_make_batches_ready(load, name, restless_threads):
    annotator = load(name)
    texts = ["two dogs", "a red car", CAPTION, " ".join(["a small green tree next to the house,"] * 12)]

    def work(i: int) -> tuple:
        text = texts[i % len(texts)]
        queries, missing = annotator.queries(text, [(2, 8)])
        classes = annotator.class_queries([f"dog {i % 5}", "tree"])
        image = picture(i, (60 + i % 7, 50))
        ready = annotator.prepare(image, (50, image.width))
        made = annotator.collate([ready] * (1 + i % 3), [queries[0]] * (1 + i % 3))
        return text, queries, missing, classes, made

    with ThreadPoolExecutor(8) as pool:
        hammered = list(pool.map(work, range(64)))
    for i in range(0, 64, 25 if name == "florence2" else 5):  # it writes its answers word by word
        _, queries, missing, classes, made = work(i)
        assert hammered[i][1:4] == (queries, missing, classes)
        a, b = annotator.predict(hammered[i][4]), annotator.predict(made)
        assert len(a) == len(b)
        for one, other in zip(a, b, strict=True):
            np.testing.assert_array_equal(one.boxes, other.boxes)


def test_wrong_folders_are_named(folders, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "yolos"}))
    known = "florence2, glip, grounding-dino, http, mm-grounding-dino, omdet-turbo, owlv2, owlvit, sam3, sam3_video"
    with pytest.raises(InputError, match=rf"found model_type 'yolos'; want one of {known}, or .*TEACHERS.register"):
        load_annotator(tmp_path, ALL)
    for name in ("owlv2", "grounding-dino"):
        broken = tmp_path / name
        shutil.copytree(folders[name], broken)
        for file in broken.glob("*processor_config.json"):
            file.unlink()
        with pytest.raises(InputError, match=f"{name}: cannot be loaded; want a model folder with its processor"):
            load_annotator(broken, ALL)


@pytest.mark.parametrize("name", ["glip", "owlv2", "grounding-dino"])
def test_a_teacher_whose_weights_have_gaps_is_refused(folders, tmp_path, name):
    """transformers fills them with random numbers, and the labels would be made by these."""
    shutil.copytree(folders[name], tmp_path / name)
    file = tmp_path / name / "model.safetensors"
    weights = load_file(file)
    lost = min(n for n in weights if n.endswith("weight"))
    del weights[lost]
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(InputError, match=rf"{name}: cannot be loaded.*found no {lost} in its weights"):
        load_annotator(tmp_path / name, ALL)


@pytest.mark.parametrize("name", OTHERS)
def test_images_of_any_shape_are_images(load, name):
    annotator = load(name)
    for size in ((1, 1), (1, 500), (500, 2)):
        found = predict_images(annotator, [Image.new("RGB", size)], [one_query(annotator)])[0]
        assert (found.boxes[:, 2] <= size[0]).all() and (found.boxes[:, 3] <= size[1]).all()
