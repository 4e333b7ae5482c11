"""SAM 3, OmDet-Turbo and Florence-2: against transformers' own processors and post-processing."""

from __future__ import annotations

import json
import shutil
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from pycocotools.mask import decode
from scipy.optimize import linear_sum_assignment
from transformers import (
    AutoConfig,
    AutoModelForZeroShotObjectDetection,
    AutoProcessor,
    Florence2ForConditionalGeneration,
    Sam3Model,
    Sam3Processor,
)

from pipeline.annotators import florence2, omdet_turbo, sam3
from pipeline.annotators.base import TEACHERS, load_annotator, model_type
from pipeline.annotators.grounding_dino import GroundingDinoAnnotator
from pipeline.errors import InputError
from tests.fixtures.annotators import predict_images
from tests.pipeline.annotators.conftest import ALL, CAPTION, SPANS, picture

SIZES = [(100, 60), (50, 90), (64, 64)]
ASKED = [
    (CAPTION, SPANS),
    ("two dogs", [(0, 8)]),
    ("a cat, a blue bicycle and an old house", [(0, 5), (7, 21), (29, 38)]),
]
TASK = "<CAPTION_TO_PHRASE_GROUNDING>"


@pytest.fixture
def batch():
    """Images of different sizes, each with texts of its own, and the texts of their phrases."""
    images = [picture(i, size) for i, size in enumerate(SIZES)]
    return images, [[text[a:b] for a, b in spans] for text, spans in ASKED]


def predicted(annotator, images):
    return predict_images(annotator, images, [annotator.queries(*asked)[0][0] for asked in ASKED])


def equal(ours, phrase, boxes, scores, size) -> None:
    """The regions of a phrase are those boxes inside an image of ``size`` (width, height), with those scores."""
    boxes = np.asarray(boxes, np.float32).reshape(-1, 4).clip(0, [*size, *size])
    inside = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    theirs = np.column_stack([boxes, np.asarray(scores, np.float32)])[inside]
    mine = np.column_stack([ours.boxes, ours.score])[ours.phrase == phrase]
    assert len(mine) == len(theirs)
    apart = np.abs(mine[:, None] - theirs[None]) / [*[0.01] * 4, 1e-5]
    assert apart.max(-1)[linear_sum_assignment(apart.max(-1))].max(initial=0) < 1


@pytest.mark.parametrize("name", ["sam3", "sam3_video"])
def test_sam3_answers_as_its_own_post_processing(folders, load, batch, name):
    images, phrases = batch
    network = Sam3Model.from_pretrained(folders["sam3"]).eval()
    processor = Sam3Processor.from_pretrained(folders["sam3"])
    found, regions = predicted(load(name), images), 0
    for image, texts, ours in zip(images, phrases, found, strict=True):
        for i, text in enumerate(texts):
            with torch.inference_mode():
                outputs = network(**processor(images=image, text=[text], return_tensors="pt"))
            target = [(image.height, image.width)]
            (theirs,) = processor.post_process_object_detection(outputs, threshold=0, target_sizes=target)
            equal(ours, i, theirs["boxes"], theirs["scores"], image.size)
            presence = outputs.presence_logits.sigmoid().item()
            of_phrase = ours.phrase == i
            np.testing.assert_allclose((ours.score / ours.token_mean)[of_phrase], presence, rtol=1e-5)
            regions += of_phrase.sum()
    assert regions >= 20


def test_sam3_masks_are_those_of_its_own_post_processing(folders, load, batch):
    images, phrases = batch
    network = Sam3Model.from_pretrained(folders["sam3"]).eval()
    processor = Sam3Processor.from_pretrained(folders["sam3"])
    with_masks, filled = predicted(load("sam3", ALL.model_copy(update={"masks": True})), images), []
    for image, texts, ours, plain in zip(images, phrases, with_masks, predicted(load("sam3"), images), strict=True):
        assert plain.mask is None and (plain.boxes == ours.boxes).all() and (plain.score == ours.score).all()
        size = (image.height, image.width)
        for i, text in enumerate(texts):
            with torch.inference_mode():
                outputs = network(**processor(images=image, text=[text], return_tensors="pt"))
            (theirs,) = processor.post_process_instance_segmentation(outputs, threshold=0, target_sizes=[size])
            rows = np.flatnonzero(ours.phrase == i)
            decoded = decode([{"size": size, "counts": counts} for counts in ours.mask[rows]])
            for row, mask in zip(rows, np.moveaxis(decoded, 2, 0), strict=True):  # boxes outside the image are dropped
                own = np.abs(theirs["scores"].numpy() - ours.score[row]).argmin()
                assert (mask != theirs["masks"][own].numpy()).mean() < 0.002  # pixels at a half to rounding
                filled.append(mask.mean())
    assert len(filled) >= 20 and np.ptp(filled) > 0.1


def test_masks_of_a_teacher_without_them_are_refused(load):
    with pytest.raises(
        InputError, match=r"of model_type owlv2, which predicts none; want sam3 or sam3_video, or masks"
    ):
        load("owlv2", ALL.model_copy(update={"masks": True}))


def test_sam3_looks_at_an_image_once_for_all_its_phrases(load, monkeypatch):
    annotator = load("sam3")
    monkeypatch.setattr(sam3, "PHRASES_AT_ONCE", 2)
    seen, looked = [], annotator._model.vision_encoder.forward
    monkeypatch.setattr(
        annotator._model.vision_encoder, "forward", lambda pixels, **o: seen.append(len(pixels)) or looked(pixels, **o)
    )
    (query,) = annotator.class_queries(["red car", "tree", "dog", "cat", "old house"])
    found = predict_images(annotator, [picture(0), picture(1)], [query] * 2)
    assert seen == [2] and all(set(f.phrase.tolist()) == {0, 1, 2, 3, 4} for f in found)


def test_omdet_answers_as_its_own_post_processing(folders, load, batch):
    images, phrases = batch
    network = AutoModelForZeroShotObjectDetection.from_pretrained(folders["omdet-turbo"]).eval()
    processor = AutoProcessor.from_pretrained(folders["omdet-turbo"])
    for image, texts, ours in zip(images, phrases, predicted(load("omdet-turbo"), images), strict=True):
        with torch.inference_mode():
            outputs = network(**processor(images=image, text=[texts], return_tensors="pt"))
        (theirs,) = processor.post_process_grounded_object_detection(
            outputs, threshold=0, nms_threshold=1.0, max_num_det=12 * len(texts),
            target_sizes=[(image.height, image.width)],
        )  # fmt: skip
        for i in range(len(texts)):
            of_phrase = theirs["labels"] == i
            equal(ours, i, theirs["boxes"][of_phrase], theirs["scores"][of_phrase], image.size)
        assert len(ours.score) >= 6 * len(texts)


def test_omdet_spreads_phrases_over_tasks_that_fit_its_text(folders, load, monkeypatch):
    annotator = load("omdet-turbo")
    names = [f"{a} {b}" for a in ("red", "blue", "old") for b in ("car", "house", "umbrella", "woman", "xylophone")]
    (query,), (short,) = annotator.class_queries(names), annotator.class_queries(names[:2])
    images, queries = [picture(0), picture(1)], [query, short]
    passes, looked = [], annotator._model.vision_backbone.forward
    monkeypatch.setattr(
        annotator._model.vision_backbone, "forward", lambda pixels: passes.append(len(pixels)) or looked(pixels)
    )
    found = predict_images(annotator, images, queries)
    assert passes == [2] and set(found[0].phrase.tolist()) == set(range(len(names)))
    tasks = annotator._tasks(tuple(names))
    assert len(tasks) > 1 and [i for task in tasks for i in range(*task)] == list(range(len(names)))
    processor = AutoProcessor.from_pretrained(folders["omdet-turbo"])
    for start, stop in tasks:
        text = f"Detect {', '.join(names[start:stop])}."
        assert len(processor.tokenizer(text)["input_ids"]) <= 77
        assert stop == len(names) or len(processor.tokenizer(f"{text[:-1]}, {names[stop]}.")["input_ids"]) > 77
        (part,) = annotator.class_queries(names[start:stop])
        alone = predict_images(annotator, images[:1], [part])[0]
        of_task = (found[0].phrase >= start) & (found[0].phrase < stop)
        np.testing.assert_allclose(found[0].boxes[of_task], alone.boxes, atol=0.01)
        np.testing.assert_allclose(found[0].score[of_task], alone.score, atol=1e-5)


@pytest.mark.skipif(find_spec("timm") is not None, reason="with timm the backbone can be built")
def test_omdets_released_backbone_needs_a_package_that_the_error_names(folders, tmp_path):
    shutil.copytree(folders["omdet-turbo"], tmp_path / "released")
    config = json.loads((tmp_path / "released/config.json").read_text())
    config |= {"backbone_config": None, "backbone": "swin_tiny_patch4_window7_224", "use_timm_backbone": True}
    (tmp_path / "released/config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"released: cannot be loaded.*timm"):
        load_annotator(tmp_path / "released", ALL)


def test_florence_answers_as_its_own_post_processing(folders, load, batch):
    images, phrases = batch
    network = Florence2ForConditionalGeneration.from_pretrained(folders["florence2"]).eval()
    processor = AutoProcessor.from_pretrained(folders["florence2"])
    regions = 0
    for image, texts, ours in zip(images, phrases, predicted(load("florence2"), images), strict=True):
        for i, text in enumerate(texts):
            inputs = processor(images=image, text=TASK + text, return_tensors="pt")
            with torch.inference_mode():
                answer = network.generate(
                    **inputs, do_sample=False, max_new_tokens=95, output_logits=True, return_dict_in_generate=True
                )
            written = processor.batch_decode(answer.sequences, skip_special_tokens=False)[0]
            theirs = processor.post_process_generation(text=written, task=TASK, image_size=image.size)[TASK]
            chances = network.compute_transition_scores(answer.sequences, answer.logits, normalize_logits=True).exp()
            scores = box_scores(processor, answer.sequences[0, 1:].tolist(), chances[0].numpy())
            assert len(scores) == len(theirs["bboxes"])
            equal(ours, i, theirs["bboxes"], scores, image.size)
            regions += (ours.phrase == i).sum()
    assert regions >= 10
    assert (ours.token_min <= ours.token_mean).all() and (ours.token_mean <= ours.token_max).all()
    np.testing.assert_array_equal(ours.token_mean, ours.score)


def box_scores(processor, tokens, chances):
    """Mean probability of the tokens of each box: of a run of locations after a text, each four of at least four.

    Without a text the parser takes the first location as one.
    """
    texts = processor.tokenizer.convert_ids_to_tokens(tokens)
    kept = [(t, c) for t, c in zip(texts, chances, strict=True) if t not in ("<s>", "</s>", "<pad>")]
    scores, run, after_text = [], [], False
    for text, chance in [*kept, ("", 0.0)]:
        if text.startswith("<loc_"):
            run += [chance] if after_text else []
            after_text = True
        else:
            scores += [np.mean(run[at : at + 4]) for at in range(0, len(run) - 3, 4)]
            run, after_text = [], not text.endswith("<")
    return scores


def test_florence_is_prompted_as_its_processor_writes_it(folders, load):
    annotator, processor = load("florence2"), AutoProcessor.from_pretrained(folders["florence2"])
    words = ["a red car", "Straße", "two dogs", "<OCR>"]
    (query,) = annotator.class_queries(words)
    inputs = annotator.collate([annotator.prepare(picture(0), (60, 90))], [query]).inputs
    for word, row in zip(words[:-1], inputs.rows[0], strict=False):
        theirs = processor(images=picture(0), text=TASK + word, return_tensors="pt")
        ids = inputs.texts["input_ids"][row][inputs.texts["attention_mask"][row].bool()]
        assert theirs["input_ids"][0].tolist() == [processor.image_token_id] * 5 + ids.tolist()
        torch.testing.assert_close(inputs.pixels, theirs["pixel_values"])
    assert "caption: <OCR></s>" in processor.tokenizer.decode(inputs.texts["input_ids"][inputs.rows[0][-1]])


def test_florence_looks_at_an_image_once_for_all_its_phrases(load, monkeypatch):
    annotator = load("florence2")
    (query,) = annotator.class_queries(["red car", "tree", "dog", "cat", "old house"])
    images = [picture(0), picture(1)]
    whole = predict_images(annotator, images, [query] * 2)
    monkeypatch.setattr(florence2, "PHRASES_AT_ONCE", 3)
    seen, looked = [], annotator._model.model.vision_tower.forward
    monkeypatch.setattr(
        annotator._model.model.vision_tower, "forward", lambda x, **o: seen.append(len(x)) or looked(x, **o)
    )
    for parts, once in zip(predict_images(annotator, images, [query] * 2), whole, strict=True):
        np.testing.assert_array_equal(parts.boxes, once.boxes)
        np.testing.assert_allclose(parts.score, once.score, atol=1e-5)
    assert seen == [2]


@pytest.mark.parametrize(("name", "limit"), [("omdet-turbo", 77), ("florence2", 91), ("sam3", 32)])
def test_phrases_beyond_the_text_limit_are_missing(load, name, limit):
    annotator = load(name)
    caption = f"a dog, {'q' * limit}"
    (query,), missing = annotator.queries(caption, [(2, 5), (7, 7 + limit), (2, 7 + limit)])
    assert query.phrases == (0,) and missing == [1, 2]
    most = "q" * (annotator._limit - annotator._specials)
    (query,) = annotator.class_queries([most, "dog"])
    texts = annotator.collate([annotator.prepare(picture(0), (60, 90))], [query]).inputs.texts
    (cut,) = annotator._tokenizer.batch_decode(texts["input_ids"][:1])
    assert most in cut.replace(" ", "")
    with pytest.raises(InputError, match="class name"):
        annotator.class_queries([f"{most}q"])


def test_llmdet_is_an_mm_grounding_dino(folders, tmp_path):
    """Its released folders state this family, and nothing of their own but sizes."""
    config = json.loads((folders["mm-grounding-dino"] / "config.json").read_text())
    for file in folders["mm-grounding-dino"].iterdir():
        shutil.copy(file, tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config | {"_name_or_path": "iSEE-Laboratory/llmdet_tiny"}))
    assert model_type(tmp_path) == AutoConfig.from_pretrained(tmp_path).model_type == "mm-grounding-dino"
    assert TEACHERS.get("mm-grounding-dino") is GroundingDinoAnnotator
    annotator = load_annotator(tmp_path, ALL)
    assert annotator.name == "mm-grounding-dino"
    (found,) = predict_images(annotator, [picture(0)], [annotator.queries(CAPTION, SPANS)[0][0]])
    assert set(found.phrase.tolist()) == {0, 1}


def test_texts_are_encoded_in_parts_without_a_trace(load, monkeypatch):
    annotator = load("omdet-turbo")
    (query,) = annotator.class_queries(["red car", "tree", "dog", "cat", "old house"])
    whole = predict_images(annotator, [picture(0)], [query])[0]
    monkeypatch.setattr(omdet_turbo, "TEXTS_AT_ONCE", 2)
    parts = predict_images(annotator, [picture(0)], [query])[0]
    np.testing.assert_allclose(parts.score, whole.score, atol=1e-5)
