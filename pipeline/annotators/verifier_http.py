"""Vision-language models behind an OpenAI-style chat endpoint as verifiers. Loads no torch.

The folder holds a config.json alone (:class:`HttpVerifierConfig`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from pydantic import Field

from pipeline.annotators.chat_endpoint import EXCERPT, ChatEndpoint, ChatEndpointConfig, image_part
from pipeline.annotators.verifier_questions import WORDS, Answer, Question, word_of
from pipeline.config.recipes import build
from pipeline.data.images import ImageError
from pipeline.errors import StageError


class HttpVerifierConfig(ChatEndpointConfig):
    """The config.json of an HTTP verifier."""

    top_logprobs: int = Field(20, ge=2, description="most likely first tokens whose probabilities the endpoint gives")


class HttpVerifier:
    """A verifier (:class:`pipeline.annotators.verifier_questions.Verifier`)."""

    name = "http"
    tokens: dict[str, list[str]] | None = None

    def __init__(self, folder: str, revision: str) -> None:
        path = Path(folder) / "config.json"
        self.revision = revision
        self._about = build(HttpVerifierConfig, json.loads(path.read_bytes()), where=str(path))
        self._endpoint = ChatEndpoint(self._about, path)

    def collate(self, questions: Sequence[Question]) -> Sequence[Question]:
        """The questions as they are."""
        return questions

    def predict(self, batch: Sequence[Question]) -> list[Answer | ImageError]:
        """Send ``concurrency`` requests at a time.

        Raises:
            StageError: the endpoint is down, refuses the key or the model, or gives no top_logprobs.
        """
        return list(self._endpoint.pool.map(self._answer, batch))

    def _answer(self, question: Question) -> Answer | ImageError:
        images = [image_part(image, self._about.image_format) for image in question.images()]
        fields = {"max_tokens": 1, "logprobs": True, "top_logprobs": self._about.top_logprobs}
        try:
            choice = self._endpoint.choice([*images, {"type": "text", "text": question.text}], fields)
        except ImageError as error:
            return error
        try:
            top = [(str(t["token"]), float(t["logprob"])) for t in choice["logprobs"]["content"][0]["top_logprobs"]]
        except (KeyError, IndexError, TypeError, ValueError):
            top = []
        if not top:
            raise StageError(f"{self._endpoint.url}: found no top_logprobs in its answers; want an endpoint with them")
        logprobs: dict[str, list[float]] = {word: [] for word in WORDS}
        for token, logprob in top:
            if (word := word_of(token)) is not None:
                logprobs[word].append(logprob)
        if not any(logprobs.values()):
            tokens = ", ".join(repr(token) for token, _ in top)[:EXCERPT]
            return ImageError("answer_malformed", f"neither yes nor no is among the first tokens {tokens}")
        return Answer(*(float(np.logaddexp.reduce(logprobs[word] or [-np.inf])) for word in WORDS))
