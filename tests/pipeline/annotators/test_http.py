"""The HTTP teacher against a real server on loopback: grammars, scores, losses, retries, and what it never shows."""

from __future__ import annotations

import base64
import io
import json
import logging
import math
import subprocess
import sys
import threading
import time
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

from pipeline.annotators import http
from pipeline.annotators.base import RegionPredictions, load_annotator
from pipeline.annotators.http import HttpAnnotator, json_boxes, rex_boxes
from pipeline.config import ParsePhrasesConfig, PseudoLabelConfig
from pipeline.data.images import ImageError
from pipeline.data.records import REGIONS
from pipeline.errors import InputError, StageError
from pipeline.io.tables import footer, read_table
from pipeline.stages import ParsePhrases, PseudoLabel
from tests.fixtures.crawl import write_crawl
from tests.pipeline.annotators.conftest import CAPTION, SPANS, picture

SECRET = "sk-not-shown"
ANSWER = '```json\n[{"bbox_2d": [100, 200, 500, 800], "label": "dog"}]\n```'


def completion(text, logprobs=None, finish="stop"):
    """An endpoint's answer; ``logprobs`` of its characters, each of which is a token."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish}
    if logprobs is not None:
        tokens = [{"token": c, "logprob": logprobs(i), "bytes": list(c.encode())} for i, c in enumerate(text)]
        choice["logprobs"] = {"content": tokens}
    return {"id": "x", "object": "chat.completion", "choices": [choice]}


class Endpoint:
    """A chat endpoint on loopback. ``reply``: body -> (status, headers, JSON), called for every request."""

    def __init__(self):
        self.reply = lambda body: (200, {}, completion(ANSWER))
        self.requests, self.at_once, self.most_at_once, self._lock = [], 0, 0, threading.Lock()
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with endpoint._lock:
                    endpoint.requests.append((self.path, dict(self.headers), body))
                    endpoint.at_once += 1
                    endpoint.most_at_once = max(endpoint.most_at_once, endpoint.at_once)
                status, headers, answer = endpoint.reply(body)
                data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
                with endpoint._lock:
                    endpoint.at_once -= 1
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(data))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def prompts(self):
        return [body["messages"][0]["content"][1]["text"] for _, _, body in self.requests]


@pytest.fixture
def endpoint():
    endpoint = Endpoint()
    yield endpoint
    endpoint.server.shutdown()
    endpoint.server.server_close()


@pytest.fixture
def load(endpoint, tmp_path):
    """The teacher of a config.json with these changes."""

    def load(floor=0.0, **changes):
        about = {
            "model_type": "http", "url": endpoint.url, "model": "qwen3-vl", "prompt": "Find {phrases}.",
            "boxes": "json_xyxy_1000", "score": 0.5, "retries": 2, "timeout": 5,
        }  # fmt: skip
        (tmp_path / "config.json").write_text(json.dumps(about | changes))
        return load_annotator(tmp_path, PseudoLabelConfig(floor=floor))

    return load


def ask(annotator, caption="a dog", spans=((2, 5),), images=1):
    """The predictions of every query about each image."""
    queries, missing = annotator.queries(caption, spans)
    assert missing == []
    prepared = [annotator.prepare(picture(i, (200, 100)), (100, 200)) for i in range(images)]
    pairs = [(image, query) for image in prepared for query in queries]
    return annotator.predict(annotator.collate([i for i, _ in pairs], [q for _, q in pairs]))


def test_a_box_in_thousandths_becomes_pixels(endpoint, load):
    (regions,) = ask(load(request={"seed": 1}))
    assert isinstance(regions, RegionPredictions)
    np.testing.assert_allclose(regions.boxes, [[20, 20, 100, 80]])
    assert (regions.phrase.tolist(), regions.score.tolist()) == ([0], [0.5]) and np.isnan(regions.centerness).all()
    ((path, _, body),) = endpoint.requests
    assert path == "/v1/chat/completions" and endpoint.prompts == ["Find dog."]
    assert (body["model"], body["temperature"], body["seed"]) == ("qwen3-vl", 0, 1) and "logprobs" not in body
    data = body["messages"][0]["content"][0]["image_url"]["url"].removeprefix("data:image/jpeg;base64,")
    assert Image.open(io.BytesIO(base64.b64decode(data))).size == (200, 100)


def test_absolute_boxes_are_of_the_image_that_was_sent(endpoint, load):
    endpoint.reply = lambda body: (200, {}, completion('[{"bbox_2d": [98, 56, 196, 112], "label": "dog"}]'))
    annotator = load(boxes="json_xyxy_absolute", multiple=28, image_format="png")
    (regions,) = ask(annotator)
    assert annotator.shape(200, 100) == (112, 196)
    np.testing.assert_allclose(regions.boxes, [[100, 50, 200, 100]])


@settings(deadline=None)
@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(100_000, 2_000_000))
def test_qwens_processor_leaves_the_image_as_it_is_sent(width, height, max_pixels):
    annotator = HttpAnnotator.__new__(HttpAnnotator)
    annotator._about = http.HttpTeacherConfig(
        model_type="http", url="http://x", model="m", prompt="{phrases}", boxes="json_xyxy_absolute",
        multiple=28, max_pixels=max_pixels,
    )  # fmt: skip
    sent = annotator.shape(width, height)
    if max(sent) / min(sent) <= 200:  # Qwen refuses others
        assert smart_resize(*sent, max_pixels=4 * max_pixels) == sent


def test_the_score_is_the_probability_of_the_coordinates(endpoint, load):
    start, end = ANSWER.index("[100"), ANSWER.index("]") + 1
    probability = [0.0001 if not start <= i < end else 0.64 if i % 2 else 0.81 for i in range(len(ANSWER))]
    endpoint.reply = lambda body: (200, {}, completion(ANSWER, lambda i: math.log(probability[i])))
    (regions,) = ask(load(score="logprobs"))
    assert endpoint.requests[0][2]["logprobs"] is True
    of_box = probability[start:end]
    assert regions.score[0] == pytest.approx(math.exp(np.log(of_box).mean()))
    assert regions.token_mean[0] == pytest.approx(np.mean(of_box))
    assert (regions.token_min[0], regions.token_max[0]) == (np.float32(0.64), np.float32(0.81))
    assert len(ask(load(floor=0.75, score="logprobs"))[0].score) == 0  # below the floor


def test_without_logprobs_no_score_is_made_up(endpoint, load):
    with pytest.raises(StageError, match="found no logprobs in its answers; want an endpoint that gives them, or"):
        ask(load(score="logprobs"))
    (lost,) = ask(load(score="field"))
    assert isinstance(lost, ImageError) and "a box without a score from 0 to 1" in str(lost)
    endpoint.reply = lambda body: (200, {}, completion('[{"bbox_2d": [1, 1, 9, 9], "score": 0.25}]'))
    assert ask(load(score="field"))[0].score.tolist() == [0.25]
    with pytest.raises(InputError, match=r"score: found 0.5; want more than the floor, 0.6"):
        load(floor=0.6)


def test_several_phrases_are_matched_by_their_labels(endpoint, load, caplog):
    boxes = [([0, 0, 500, 500], "Red car"), ([0, 0, 400, 400], "tree"), ([500, 500, 900, 900], "small green tree")]
    answer = json.dumps([{"bbox_2d": box, "label": label} for box, label in boxes])
    endpoint.reply = lambda body: (200, {}, completion(answer))
    (regions,) = ask(load(phrases_per_request=2, prompt="{phrases} in: {caption}"), CAPTION, SPANS)
    assert regions.phrase.tolist() == [0, 1] and endpoint.prompts == [f"red car, small green tree in: {CAPTION}"]
    assert "left out: a box with the label 'tree', which is no phrase of its request (1 so far)" in caplog.text
    one, other = ask(load(), CAPTION, SPANS)  # a phrase a request: labels do not matter
    assert (set(one.phrase), set(other.phrase)) == ({0}, {1}) and len(one.score) == 2  # NMS at 0.6
    assert [q.text[slice(*q.spans[0])] for q in load().class_queries(["dog", "cat"])] == ["dog", "cat"]


REX = (
    "<|object_ref_start|>dog<|object_ref_end|><|box_start|><0><0><999><999>,<100><200><300><400><|box_end|>, "
    "<|object_ref_start|>cat<|object_ref_end|><|box_start|>None<|box_end|><|im_end|>"
)


def test_rex_omnis_tokens(endpoint, load):
    endpoint.reply = lambda body: (200, {}, completion(REX, lambda i: 0.0))
    (regions,) = ask(load(boxes="rex_omni", score="logprobs", request={"skip_special_tokens": False}))
    np.testing.assert_allclose(regions.boxes[0], [0, 0, 200, 100], rtol=1e-6)
    assert len(regions.score) == 2 and endpoint.requests[0][2]["skip_special_tokens"] is False
    assert [REX[slice(*b.span)] for b in rex_boxes(REX)] == ["<0><0><999><999>", "<100><200><300><400>"]
    for wrong in ("dog at 1, 2", REX.replace("None", "<1><2><3>")):
        with pytest.raises(ValueError, match="no "):
            list(rex_boxes(wrong))


numbers = st.integers(-50, 1100) | st.floats(0, 1000).map(lambda v: round(v, 2))
label = st.text(st.characters(codec="utf-8", exclude_characters="{}"), max_size=12)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(st.tuples(numbers, numbers, numbers, numbers), label), max_size=6), st.booleans())
def test_what_json_states_is_read_back(boxes, fenced):
    text = json.dumps([{"bbox_2d": box, "label": name} for box, name in boxes], ensure_ascii=False)
    text = f"Here they are:\n```json\n{text}\n```" if fenced else text
    found = list(json_boxes(text))
    assert [(b.box, b.label) for b in found] == [(tuple(map(float, box)), name) for box, name in boxes]
    assert [json.loads(text[slice(*b.span)]) for b in found] == [list(box) for box, _ in boxes]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (completion("I see no dog."), "answer_malformed: no JSON list of boxes"),
        (completion('[{"bbox_2d": [1, 2, 3], "label": "dog"}]'), "answer_malformed: no four numbers"),
        (completion('[{"bbox_2d": [1, 2, 3, NaN]}]'), "answer_malformed: no four numbers"),
        (completion('[{"point": [1, 2]}]'), "answer_malformed: no bbox_2d"),
        (completion("[{bbox_2d: [1, 2, 3, 4]}]"), "answer_malformed: Expecting property name"),
        (completion(None), "answer_malformed: an empty answer"),
        (completion(ANSWER[:30], finish="length"), "answer_truncated: longer than max_tokens=2048"),
    ],
)
def test_an_answer_that_is_none_loses_its_image_alone(endpoint, load, answer, reason):
    endpoint.reply = lambda body: (200, {}, answer if len(endpoint.requests) == 1 else completion("[]"))
    lost, empty = ask(load(concurrency=1), images=2)
    assert isinstance(lost, ImageError) and str(lost).startswith(reason)
    assert len(empty.score) == 0


def test_requests_are_tried_again_as_the_endpoint_says(endpoint, load, monkeypatch):
    waits = []
    monkeypatch.setattr(time, "sleep", waits.append)
    date = formatdate(time.time() + 40, usegmt=True)
    answers = iter([(429, {"Retry-After": "7"}, {}), (503, {"Retry-After": date}, {})])
    endpoint.reply = lambda body: next(answers, (200, {}, completion(ANSWER)))
    assert len(ask(load())[0].score) == 1 and waits[0] == 7 and 37 < waits[1] <= 41
    waits.clear()
    endpoint.reply = lambda body: (502, {}, b"<html>bad gateway</html>")
    with pytest.raises(StageError, match=r"no answer in 3 tries \(HTTP 502: <html>bad gateway</html>\); is the"):
        ask(load())
    assert waits == [1, 2]
    endpoint.reply = lambda body: (500, {}, {"error": "this image"})
    (lost,) = ask(load())
    assert lost.reason == "no_answer"
    endpoint.reply = lambda body: (400, {}, {"error": "the prompt is too long"})
    (lost,) = ask(load())
    assert lost.reason == "request_refused" and "the prompt is too long" in str(lost)


def test_a_slow_or_absent_endpoint(endpoint, load):
    endpoint.reply = lambda body: time.sleep(0.6) or (200, {}, completion(ANSWER))
    (lost,) = ask(load(timeout=0.2, retries=0))
    assert str(lost) == "no_answer: ReadTimeout"
    with pytest.raises(StageError, match=r"no answer in 1 tries \(ConnectError\)"):
        ask(load(url="http://127.0.0.1:9/v1", retries=0))
    endpoint.reply = lambda body: (200, {}, b"<html>")
    with pytest.raises(StageError, match="found <html>; want a chat completion"):
        ask(load())


def test_requests_of_a_batch_are_sent_together(endpoint, load):
    endpoint.reply = lambda body: time.sleep(0.1) or (200, {}, completion(ANSWER))
    assert len(ask(load(concurrency=4), images=8)) == 8
    assert 2 <= endpoint.most_at_once <= 4


def test_the_key_is_sent_and_shown_nowhere(endpoint, load, monkeypatch, caplog, tmp_path):
    caplog.set_level(logging.DEBUG)
    monkeypatch.delenv("MY_KEY", raising=False)
    with pytest.raises(InputError, match="the environment variable MY_KEY is not set"):
        load(key_variable="MY_KEY")
    monkeypatch.setenv("MY_KEY", SECRET)
    ask(annotator := load(key_variable="MY_KEY"))
    assert endpoint.requests[0][1]["Authorization"] == f"Bearer {SECRET}"
    endpoint.reply = lambda body: (401, {}, {"error": f"{SECRET} is no key"})
    with pytest.raises(StageError, match=r"HTTP 401: .*\*\*\* is no key") as error:
        ask(annotator)
    assert SECRET not in caplog.text + str(error.value) + (tmp_path / "config.json").read_text()
    monkeypatch.setenv("MY_KEY", "another")
    assert load(key_variable="MY_KEY").revision == annotator.revision


def test_wrong_settings_are_named(load, monkeypatch):
    for changes, words in (
        ({"prompt": "Find it."}, "want {phrases} in it"),
        ({"url": None}, "want one of url and url_variable"),
        ({"boxes": "json_xyxy_absolute"}, "want the multiple"),
        ({"bxes": 1}, r"bxes: .*did you mean boxes"),
        ({"url": "http://me:word@host/v1"}, "want an address without anything before an @"),
    ):
        with pytest.raises(InputError, match=words):
            load(**changes)
    monkeypatch.setenv("VLLM_URL", "http://127.0.0.1:1/v1/")
    assert load(url=None, url_variable="VLLM_URL")._endpoint.url == "http://127.0.0.1:1/v1/chat/completions"


def test_it_labels_a_crawl_and_counts_what_is_lost(endpoint, load, tmp_path):
    crawl = write_crawl(tmp_path / "crawl")
    grams = ParsePhrasesConfig(method="ngrams", language=None, max_ngrams=2)  # needs no parser
    ParsePhrases(shards=crawl, out=tmp_path / "phrases", settings=grams).run()
    replies = iter([completion("no idea")])
    endpoint.reply = lambda body: (200, {}, next(replies, completion(ANSWER)))
    load(concurrency=1)
    report = PseudoLabel(
        shards=crawl, phrases=tmp_path / "phrases", teacher=tmp_path, out=tmp_path / "r",
        settings=PseudoLabelConfig(max_lost_share=0.9),
    ).run()  # fmt: skip
    samples = report.tallies["samples"]
    assert samples.dropped["answer_malformed"] == 1 and samples.kept > 0
    table = read_table(next((tmp_path / "r").glob("*.parquet")), REGIONS)
    assert footer(table.schema)["teacher"].startswith("http@") and set(table["score"].to_pylist()) == {0.5}


def test_it_needs_no_torch():
    code = "import pipeline.annotators.http, sys; print({'torch', 'transformers'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
