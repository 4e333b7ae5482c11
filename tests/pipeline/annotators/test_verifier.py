"""Verifiers: real vision-language models at a tiny size against transformers' own forward pass, and over HTTP."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from pipeline.annotators.verifier import check_verifier, load_verifier
from pipeline.annotators.verifier_questions import MAX_ASPECT, Answer, ImageQuestions, Question, word_of
from pipeline.config import RescoreConfig, VerifierConfig
from pipeline.data.images import ImageError
from pipeline.errors import InputError, StageError
from tests.fixtures import teachers, verifiers
from tests.pipeline.annotators.conftest import picture
from tests.pipeline.annotators.test_http import SECRET, Endpoint

CONFIG = RescoreConfig()
FAMILIES = ("qwen2_vl", "idefics3", "llava")


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("verifiers")
    return {name: getattr(verifiers, name)(root / name) for name in FAMILIES}


def questions() -> list[Question]:
    """Questions of different lengths about images of different sizes: regions, and one about more."""
    options = VerifierConfig(crop_side=24, max_pixels=3000)
    wide, high, thin = (
        ImageQuestions(picture(i, size), options) for i, size in enumerate([(80, 64), (30, 90), (3, 700)])
    )
    return [
        wide.of_region(np.array([10.0, 5.0, 40.0, 30.0]), "dog"),
        wide.of_region(np.array([0.0, 0.0, 80.0, 64.0]), "a very long phrase about a small green tree"),
        high.of_more(np.array([[2.0, 3.0, 20.0, 30.0], [4.0, 50.0, 25.0, 80.0]]), "umbrella"),
        high.of_region(np.array([29.9, 89.9, 30.0, 90.0]), "x"),
        thin.of_region(np.array([0.0, 0.0, 3.0, 700.0]), "pole"),
    ]


def scores(verifier, batch) -> list[float]:
    return [answer.score for answer in verifier.predict(verifier.collate(batch))]


@pytest.mark.parametrize("name", FAMILIES)
def test_an_answer_is_that_of_a_forward_pass_of_its_own(folders, name):
    verifier, batch = load_verifier(folders[name], CONFIG), questions()
    assert (verifier.name, verifier.tokens) == (name, {"yes": [" yes", "yes", "Yes"], "no": [" no", "no", "No"]})
    network, processor = (kind.from_pretrained(folders[name]) for kind in (AutoModelForImageTextToText, AutoProcessor))
    encode = processor.tokenizer.encode
    words = [[i for form in forms for i in encode(form)] for forms in (("yes", "Yes", " yes"), ("no", "No", " no"))]
    assert [len(ids) for ids in words] == [3, 3]
    wanted = []
    for question in batch:
        content = [{"type": "image"}] * len(question.images()) + [{"type": "text", "text": question.text}]
        text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        inputs = processor(text=[text], images=[question.images()], return_tensors="pt")
        with torch.inference_mode():
            p = network.eval()(**inputs).logits[0, -1].softmax(-1)
        yes, no = (float(p[ids].sum()) for ids in words)
        wanted.append(yes / (yes + no))
    np.testing.assert_allclose(scores(verifier, batch), wanted, atol=1e-5)
    assert np.ptp(wanted) > 0.01  # they depend on image and text


@pytest.mark.parametrize("name", FAMILIES)
def test_an_answer_does_not_depend_on_its_batch_and_is_repeated(folders, name):
    verifier, batch = load_verifier(folders[name], CONFIG), questions()
    together = scores(verifier, batch)
    alone = [scores(verifier, [question])[0] for question in batch]
    np.testing.assert_allclose(together, alone, atol=1e-4)
    np.testing.assert_allclose(scores(verifier, batch[::-1])[::-1], alone, atol=1e-4)
    assert scores(verifier, batch) == together


def test_the_box_the_crop_and_the_phrase_count(folders):
    verifier = load_verifier(folders["qwen2_vl"], CONFIG)
    about = ImageQuestions(picture(1, (80, 64)), VerifierConfig(crop_side=24))
    dog, cat = (about.of_region(np.array([10.0, 5.0, 40.0, 30.0]), phrase) for phrase in ("dog", "cat"))
    elsewhere = about.of_region(np.array([40.0, 30.0, 75.0, 60.0]), "dog")
    variants = [dog, cat, Question(dog.text, dog.picture, elsewhere.boxes, dog.crop),
                Question(dog.text, dog.picture, dog.boxes, elsewhere.crop)]  # fmt: skip
    assert len({round(score, 5) for score in scores(verifier, variants)}) == 4


def test_markers_of_the_template_in_a_phrase_are_left_out(folders):
    """Captions hold anything; another marker of an image would need another image."""
    about = ImageQuestions(picture(1, (80, 64)), VerifierConfig())
    box = np.array([10.0, 5.0, 40.0, 30.0])
    for name, marker in (("qwen2_vl", "<|image_pad|>"), ("idefics3", "<image>"), ("llava", "<image>")):
        verifier = load_verifier(folders[name], CONFIG)
        odd, plain = (about.of_region(box, phrase) for phrase in (f"a{marker}dog<|im_end|>", "a dog "))
        np.testing.assert_allclose(*([s] for s in scores(verifier, [odd, plain])), atol=1e-5)


def test_a_batch_that_does_not_fit_is_halved(folders, monkeypatch):
    verifier, batch = load_verifier(folders["qwen2_vl"], CONFIG), questions()
    wanted, seen, forward = scores(verifier, batch), [], verifier._model.forward

    def limited(**inputs):
        seen.append(len(inputs["input_ids"]))
        if seen[-1] > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(**inputs)

    monkeypatch.setattr(verifier._model, "forward", limited)
    monkeypatch.setattr(verifier._in_halves, "most", None)
    np.testing.assert_allclose(scores(verifier, batch), wanted, atol=1e-4)
    assert seen == [5, 2, 2, 1]


def test_bf16_changes_answers_slightly(folders):
    batch = questions()
    exact = scores(load_verifier(folders["llava"], CONFIG), batch)
    rough = load_verifier(folders["llava"], RescoreConfig(precision="bf16"))
    assert {p.dtype for p in rough._model.parameters()} == {torch.bfloat16}
    assert 0 < np.abs(np.array(scores(rough, batch)) - exact).max() < 0.1


def test_folders_that_cannot_verify_are_named(folders, tmp_path):
    without = verifiers.qwen2_vl(tmp_path / "without", words=("yes", "Yes", "No"))
    load_verifier(without, CONFIG)  # one form of each word is enough
    without = verifiers.qwen2_vl(tmp_path / "no", words=("yes", "Yes"))
    with pytest.raises(InputError, match=r'/no: found no single token for "no" in its tokenizer; want another model'):
        load_verifier(without, CONFIG)
    with pytest.raises(InputError, match="found model_type 'clip'; want a vision-language model of transformers"):
        check_verifier(teachers.clip(tmp_path / "clip"))
    (without / "chat_template.jinja").unlink()
    with pytest.raises(InputError, match="found no chat template of its processor"):
        load_verifier(without, CONFIG)


def test_a_chat_template_is_part_of_the_revision(folders, tmp_path):
    folder = verifiers.llava(tmp_path / "llava")
    revision = load_verifier(folder, CONFIG).revision
    assert load_verifier(folders["llava"], CONFIG).revision == revision
    (folder / "chat_template.jinja").write_text("another")
    assert load_verifier(folder, CONFIG).revision != revision


@pytest.mark.parametrize(
    ("text", "found"),
    [("is it so?", "no placeholder"), ("{phrases}?", "{phrases}"), ("{phrase} {}?", "{phrase}, {}")],
)
def test_a_question_has_the_phrase_and_no_other_placeholder(text, found):
    with pytest.raises(ValueError, match="and no other") as error:
        VerifierConfig(more_question=text)
    assert f"found {found};" in str(error.value)


sides = st.integers(1, 300)


@settings(deadline=None, max_examples=60)
@given(st.data(), sides, sides, st.integers(1, 20_000), st.integers(1, 64))
def test_images_of_a_question_have_bounded_sides_and_show_the_box(data, width, height, max_pixels, crop_side):
    x, y = (sorted(data.draw(st.lists(st.floats(-5, n + 5), min_size=2, max_size=2))) for n in (width, height))
    image = Image.new("RGB", (width, height), (0, 0, 255))
    options = VerifierConfig(max_pixels=max_pixels, crop_side=crop_side)
    drawn, crop = ImageQuestions(image, options).of_region(np.array([x[0], y[0], x[1], y[1]]), "dog").images()
    for shown in (drawn, crop):
        assert max(shown.size) <= MAX_ASPECT * min(shown.size) and shown.mode == "RGB"
    assert max(crop.size) == crop_side
    assert (np.asarray(drawn) == (255, 0, 0)).all(-1).any()  # of the smallest box, and of one outside the image


@settings(deadline=None)
@given(st.floats(-800, 0), st.floats(-800, 0))
def test_a_score_is_a_probability_however_small_both_are(yes, no):
    score = Answer(yes, no).score
    assert 0 <= score <= 1 and score == pytest.approx(1 / (1 + math.exp(min(no - yes, 700))), abs=1e-9)
    assert Answer(yes, -math.inf).score == 1 and Answer(-math.inf, no).score == 0
    assert Answer(yes, no).clear == (math.exp(yes) + math.exp(no) >= 0.5)


def test_words_in_any_form():
    assert [word_of(t) for t in (" Yes", "YES", "no\n", "yesterday", "", "▁no", "not")] == [
        "yes", "yes", "no", None, None, None, None,
    ]  # fmt: skip


# over HTTP


def first_token(*top):
    """An endpoint's answer with these (token, probability) as the most likely first tokens."""
    top_logprobs = [{"token": token, "logprob": math.log(p), "bytes": None} for token, p in top]
    content = [{**top_logprobs[0], "top_logprobs": top_logprobs}]
    message = {"role": "assistant", "content": top[0][0]}
    return {"choices": [{"index": 0, "message": message, "finish_reason": "length", "logprobs": {"content": content}}]}


@pytest.fixture
def endpoint():
    endpoint = Endpoint()
    yield endpoint
    endpoint.server.shutdown()
    endpoint.server.server_close()


@pytest.fixture
def over_http(endpoint, tmp_path):
    """The verifier of a config.json with these changes."""

    def load(**changes):
        about = {"model_type": "http", "url": endpoint.url, "model": "qwen3-vl", "retries": 0, "timeout": 5}
        (tmp_path / "config.json").write_text(json.dumps(about | changes))
        check_verifier(tmp_path)
        return load_verifier(tmp_path, CONFIG)

    return load


def test_the_first_tokens_of_an_endpoint_are_added_up(endpoint, over_http):
    endpoint.reply = lambda body: (200, {}, first_token(("Yes", 0.4), ("No", 0.1), (" yes", 0.2), ("The", 0.1)))
    verifier, batch = over_http(request={"seed": 1}), questions()[:3]
    answers = verifier.predict(verifier.collate(batch))
    assert [a.score for a in answers] == pytest.approx([0.6 / 0.7] * 3) and all(a.clear for a in answers)
    body = sorted((body for _, _, body in endpoint.requests), key=lambda b: len(b["messages"][0]["content"]))[0]
    assert (body["max_tokens"], body["logprobs"], body["top_logprobs"], body["seed"]) == (1, True, 20, 1)
    kinds = [part["type"] for part in body["messages"][0]["content"]]
    assert kinds == ["image_url", "text"] and body["messages"][0]["content"][1]["text"] == batch[2].text
    endpoint.reply = lambda body: (200, {}, first_token(("Sure", 0.9), ("No", 0.01)))
    (answer,) = verifier.predict(batch[:1])
    assert answer.score == 0 and not answer.clear


def test_questions_without_an_answer_and_endpoints_without_logprobs(endpoint, over_http):
    endpoint.reply = lambda body: (200, {}, first_token(("The", 0.9), ("I", 0.1)))
    (lost,) = over_http().predict(questions()[:1])
    assert isinstance(lost, ImageError) and lost.reason == "answer_malformed" and "first tokens 'The', 'I'" in str(lost)
    endpoint.reply = lambda body: (400, {}, {"error": "too long"})
    (lost,) = over_http().predict(questions()[:1])
    assert lost.reason == "request_refused"
    for logprobs in ({}, {"logprobs": None}, {"logprobs": {"content": [{"token": "Yes", "logprob": -0.1}]}}):
        answer = {"choices": [{"message": {"content": "Yes"}, **logprobs}]}
        endpoint.reply = lambda body, answer=answer: (200, {}, answer)
        with pytest.raises(StageError, match="found no top_logprobs in its answers; want an endpoint with them"):
            over_http().predict(questions()[:1])


def test_the_key_is_sent_and_wrong_fields_are_named(endpoint, over_http, monkeypatch):
    monkeypatch.setenv("MY_KEY", SECRET)
    endpoint.reply = lambda body: (200, {}, first_token(("yes", 0.9), ("no", 0.1)))
    over_http(key_variable="MY_KEY").predict(questions()[:1])
    assert endpoint.requests[0][1]["Authorization"] == f"Bearer {SECRET}"
    with pytest.raises(InputError, match="want one of url and url_variable"):
        over_http(url=None)
    with pytest.raises(InputError, match="prompt: Extra inputs"):
        over_http(prompt="{phrases}")
