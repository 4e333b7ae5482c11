"""Vision-language models of transformers as verifiers: one forward pass a batch of yes-or-no questions."""

from __future__ import annotations

import inspect
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForImageTextToText
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from pipeline.annotators.loading import load_parts
from pipeline.annotators.oom import OomRetryBatcher
from pipeline.annotators.tokenizers import tokenizer_lock
from pipeline.annotators.verifier_http import HttpVerifier
from pipeline.annotators.verifier_questions import WORDS, Answer, Question, Verifier, word_of
from pipeline.config import RescoreConfig
from pipeline.errors import InputError
from pipeline.io.model_folder import model_revision
from pipeline.system.devices import resolved_precision

log = logging.getLogger("glip_self_train")


@dataclass(frozen=True)
class _Batch:
    """The network's inputs, and their questions, to collate parts of them when memory runs out."""

    inputs: dict[str, Tensor]
    questions: tuple[Question, ...]


class NetworkVerifier:
    """A verifier (:class:`pipeline.annotators.verifier_questions.Verifier`).

    Questions are padded on the left, so that the last position is the answer's. An answer does not
    depend on the rest of its batch, but for rounding.
    """

    def __init__(self, folder: str, revision: str, config: RescoreConfig, device: str) -> None:
        self.revision, self._device = revision, torch.device(device)
        self._dtype = torch.bfloat16 if config.precision == "bf16" else torch.float32
        self._model, self._processor = load_parts(folder, AutoModelForImageTextToText, device, dtype=self._dtype)
        self.name = str(self._model.config.model_type)
        self._tokenizer = tokenizer = getattr(self._processor, "tokenizer", None)
        if tokenizer is None or getattr(self._processor, "chat_template", None) is None:
            raise InputError(
                f"{folder}: found no chat template of its processor (chat_template.jinja); want a vision-language "
                "model that was trained on instructions"
            )
        tokenizer.padding_side = "left"
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        self._ids = _ids_of_words(tokenizer, folder)
        self.tokens: dict[str, list[str]] | None
        self.tokens = {word: tokenizer.batch_decode([[i] for i in ids]) for word, ids in self._ids.items()}
        log.debug("%s: tokens of the answers: %s", folder, self.tokens)
        special = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
        images = getattr(self._processor, "image_token", None)
        self._markers = [*special, *([images] if isinstance(images, str) else [])]
        self._takes = inspect.signature(self._model.forward).parameters
        self._in_halves: OomRetryBatcher[_Batch, Answer] = OomRetryBatcher(
            self._forward,
            lambda batch: len(batch.questions),
            lambda batch, part: self.collate(batch.questions[part]),
            "questions",
        )

    def collate(self, questions: Sequence[Question]) -> _Batch:
        """The chats of the questions, as the model's processor takes them."""
        chats = [[{"role": "user", "content": self._content(question)}] for question in questions]
        with tokenizer_lock(self._tokenizer):
            inputs = self._processor.apply_chat_template(
                chats, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
                processor_kwargs={"padding": True},
            )  # fmt: skip
        return _Batch(dict(inputs), tuple(questions))

    def _content(self, question: Question) -> list[dict[str, Any]]:
        """Images and text of a message. Markers in a phrase, such as that of an image, are left out."""
        text = question.text
        for marker in self._markers:
            text = text.replace(marker, " ")
        images = [{"type": "image", "image": image} for image in question.images()]
        return [*images, {"type": "text", "text": text}]

    def predict(self, batch: _Batch) -> list[Answer]:
        """One forward pass for all, or one a half when memory runs out."""
        return self._in_halves(batch)

    @torch.inference_mode()
    def _forward(self, batch: _Batch) -> list[Answer]:
        inputs: dict[str, Any] = {
            name: value.to(self._device, self._dtype if value.is_floating_point() else value.dtype)
            for name, value in batch.inputs.items()
        }
        if "position_ids" in self._takes and not hasattr(self._model.base_model, "get_rope_index"):
            # which the models with positions of rows and columns make of the mask; others would count the padding
            inputs["position_ids"] = (inputs["attention_mask"].cumsum(-1) - 1).clamp(min=0)
        if "logits_to_keep" in self._takes:
            inputs["logits_to_keep"] = 1
        logits = self._model(**inputs, use_cache=False).logits[:, -1].float().log_softmax(-1)
        yes, no = (logits[:, self._ids[word]].logsumexp(-1).tolist() for word in WORDS)
        return [Answer(*pair) for pair in zip(yes, no, strict=True)]


def _ids_of_words(tokenizer: Any, folder: str) -> dict[str, list[int]]:
    """Tokens of each of WORDS, in any case and with any space before or after.

    Raises:
        InputError: there is none of a word.
    """
    special, ids = set(tokenizer.all_special_ids), dict[str, list[int]]((word, []) for word in WORDS)
    for i, text in enumerate(tokenizer.batch_decode([[i] for i in range(len(tokenizer))])):
        if (word := word_of(text)) is not None and i not in special:
            ids[word].append(i)
    for word, of_word in ids.items():
        if not of_word:
            raise InputError(f'{folder}: found no single token for "{word}" in its tokenizer; want another model')
    return ids


def _model_type(folder: str | Path) -> str:
    return str(json.loads((Path(folder) / "config.json").read_text()).get("model_type"))


def check_verifier(folder: str | Path) -> None:
    """Check that a model folder holds a verifier, before it is loaded.

    Raises:
        InputError: of a family that transformers does not know to answer questions about images.
    """
    if (kind := _model_type(folder)) != "http" and kind not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        raise InputError(
            f"{folder}/config.json: found model_type {kind!r}; want a vision-language model of transformers "
            "(AutoModelForImageTextToText), or http"
        )


@lru_cache(maxsize=1)
def _load(folder: str, revision: str, config: RescoreConfig, device: str) -> Verifier:
    check_verifier(folder)
    if _model_type(folder) == "http":
        return HttpVerifier(folder, revision)
    return NetworkVerifier(folder, revision, config, device)


def load_verifier(folder: str | Path, config: RescoreConfig, device: str = "cpu") -> Verifier:
    """The verifier in a folder, loaded once per process; ``precision`` "auto" is the device's.

    Raises:
        InputError: not a model folder, without a chat template or a token of an answer, or as
            :func:`check_verifier`.
    """
    config = config.model_copy(update={"precision": resolved_precision(config.precision, device)})
    return _load(str(folder), model_revision(folder), config, device)
