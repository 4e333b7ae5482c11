"""Classes as used from transformers: Auto classes, the zero-shot pipeline, save and load."""

import pytest
import torch
from PIL import Image
from transformers import AutoConfig, AutoModelForZeroShotObjectDetection, AutoProcessor, pipeline

from model import GlipConfig, GlipForObjectDetection, GlipProcessor
from tests.model.glip_reference import processor, tiny_model
from tests.model.golden.seeded import seeded_image


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("glip")
    # a prior of 0.3 lets boxes of an untrained network pass thresholds
    tiny_model(prior_probability=0.3).eval().save_pretrained(path)
    processor().save_pretrained(path)
    return path


def test_auto_classes_find_ours(folder):
    assert isinstance(AutoConfig.from_pretrained(folder), GlipConfig)
    network = AutoModelForZeroShotObjectDetection.from_pretrained(folder)
    assert isinstance(network, GlipForObjectDetection)
    made = AutoProcessor.from_pretrained(folder)
    assert isinstance(made, GlipProcessor)
    assert made.max_text_length == 256 and made.image_processor.size == {"shortest_edge": 96, "longest_edge": 160}


def test_a_saved_network_gives_the_same_numbers(folder):
    first = tiny_model(prior_probability=0.3).eval()
    again = GlipForObjectDetection.from_pretrained(folder).eval()
    inputs = processor()(images=[seeded_image(96, 120, 1)], text=["a dog. a cat"])
    with torch.inference_mode():
        a, b = first(**inputs), again(**inputs)
    assert torch.equal(a.logits, b.logits) and torch.equal(a.pred_boxes, b.pred_boxes)


def test_the_zero_shot_pipeline_runs_it(folder):
    detector = pipeline("zero-shot-object-detection", model=str(folder))
    image = Image.fromarray(seeded_image(90, 130, 2))
    found = detector(image, candidate_labels=["dog", "traffic light"], threshold=0.05)
    assert {f["label"] for f in found} == {"dog", "traffic light"}
    for item in found:
        box = item["box"]
        assert 0 <= box["xmin"] <= box["xmax"] <= 130 and 0 <= box["ymin"] <= box["ymax"] <= 90
        assert 0.05 < item["score"] <= 1
    assert [f["score"] for f in found] == sorted((f["score"] for f in found), reverse=True)
    # the pipeline asks one label at a time; the model asked the same way answers the same
    network, made = GlipForObjectDetection.from_pretrained(folder).eval(), GlipProcessor.from_pretrained(folder)
    inputs = made(images=[image], text=["dog"])
    with torch.inference_mode():
        outputs = network(**inputs)
    own = made.post_process_grounded_object_detection(
        outputs, phrases=[[[(0, 3)]]], threshold=0.05, target_sizes=[(90, 130)]
    )
    dogs = sorted(f["score"] for f in found if f["label"] == "dog")
    assert dogs == pytest.approx(sorted(s for s in own[0]["scores"].tolist() if s > 0.05), abs=1e-5)


def test_the_pipelines_labels_may_end_in_a_full_stop(folder):
    """It tokenizes "dog." by itself: the separator's score was averaged with the word's."""
    detector = pipeline("zero-shot-object-detection", model=str(folder))
    image = Image.fromarray(seeded_image(90, 130, 2))
    assert detector.image_processor.separator_token_id == detector.tokenizer.convert_tokens_to_ids(".")
    network, made = GlipForObjectDetection.from_pretrained(folder).eval(), GlipProcessor.from_pretrained(folder)
    with torch.inference_mode():
        outputs = network(**made(images=[image], text=["a dog."]))
    own = made.post_process_grounded_object_detection(outputs, threshold=0.05, target_sizes=[(90, 130)])[0]
    found = detector(image, candidate_labels=["a dog."], threshold=0.05)
    wanted = sorted((s for s in own["scores"].tolist() if s > 0.05), reverse=True)
    assert wanted and [f["score"] for f in found] == pytest.approx(wanted, abs=1e-5)


def test_tools_find_the_word_embeddings():
    """accelerate's FSDP2 asks for them, whatever the network."""
    network = tiny_model()
    words = network.get_input_embeddings()
    assert words is network.text_encoder.embeddings.word_embeddings
    other = torch.nn.Embedding(*words.weight.shape)
    network.set_input_embeddings(other)
    assert network.text_encoder.embeddings.word_embeddings is other is network.get_input_embeddings()
