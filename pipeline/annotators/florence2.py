"""Florence-2 as a teacher, by transformers' own class (arXiv 2311.06242).

Every phrase is the caption of a text of its own in the task of phrase grounding; the network writes
boxes as text. An image's features are computed once for all its phrases.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import Florence2ForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutput

from pipeline.annotators.base import Batch, Prepared, RegionPredictions, TextQuery
from pipeline.annotators.loading import load_parts
from pipeline.annotators.network import PhraseAnnotator, PhraseInputs
from pipeline.annotators.tokenizers import token_counts, tokenizer_lock
from pipeline.config import PseudoLabelConfig

TASK = "<CAPTION_TO_PHRASE_GROUNDING>"
PHRASES_AT_ONCE = 16
"""Phrases whose answers are generated together."""
MAX_NEW_TOKENS = 1024
"""Of an answer, as in the model card's examples; a box takes four."""
_GROUP = re.compile(r"[^<]+(?:<loc_\d+>){4,}")
_BOX = re.compile(r"(?:<loc_\d+>){4}")
"""As transformers' post-processing finds a label with its boxes."""


class Florence2Annotator(PhraseAnnotator):
    """An annotator (:class:`pipeline.annotators.base.Annotator`).

    The model gives a box no score. Stored are the probabilities with which it wrote the box's four
    coordinates: their mean as the score, and their mean, least and largest as token scores.
    """

    name = "florence2"

    def __init__(self, folder: str, revision: str, config: PseudoLabelConfig, device: str) -> None:
        super().__init__(revision, config, device)
        self._model, self._processor = load_parts(folder, Florence2ForConditionalGeneration, device)
        self._tokenizer, self._images = self._processor.tokenizer, self._processor.image_processor
        self._prompt = self._processor.task_prompts_with_input[TASK]
        longest = self._model.config.text_config.max_position_embeddings
        self._new_tokens = min(MAX_NEW_TOKENS, longest - 1)
        self._limit = longest - self._processor.num_image_tokens
        self._specials += sum(token_counts(self._tokenizer, [self._prompt.format(input="")]))
        self._side = self._only_side(self._images.size.height)

    def _tokenized(self, texts: list[str]) -> dict[str, Tensor]:
        """The prompts of these phrases, without the image's tokens."""
        marks = self._tokenizer.bos_token, self._tokenizer.eos_token
        prompts = [self._prompt.format(input=text.strip()).join(marks) for text in texts]
        with tokenizer_lock(self._tokenizer):
            return dict(
                self._tokenizer(prompts, add_special_tokens=False, padding=True, truncation=False, return_tensors="pt")
            )

    def collate(self, images: Sequence[Prepared], queries: Sequence[TextQuery]) -> Batch:
        """Each distinct phrase once."""
        pixels = torch.stack([image.pixels for image in images])
        return Batch(PhraseInputs(pixels, *self._distinct(queries)), tuple(images), tuple(queries))

    @torch.inference_mode()
    def _forward(self, batch: Batch) -> list[RegionPredictions]:
        inputs: PhraseInputs = batch.inputs
        image = torch.repeat_interleave(torch.tensor([len(rows) for rows in inputs.rows]))
        row = torch.cat(inputs.rows)
        phrase = [number for query in batch.queries for number in query.phrases]
        parts: list[list[RegionPredictions]] = [[] for _ in batch.images]
        with self._autocast():
            features = self._model.get_image_features(inputs.pixels.to(self._device)).pooler_output
            for start in range(0, len(row), PHRASES_AT_ONCE):
                at = slice(start, start + PHRASES_AT_ONCE)
                texts = {name: value[row[at]].to(self._device) for name, value in inputs.texts.items()}
                answers = self._answers(features[image[at].to(self._device)], texts)
                for i, number, (tokens, chances) in zip(image[at].tolist(), phrase[at], answers, strict=True):
                    size = batch.images[i].size
                    boxes, chances = self._boxes(tokens, chances, size)
                    evidence = (
                        chances.mean(1, keepdim=True),
                        chances.amin(1, keepdim=True),
                        chances.amax(1, keepdim=True),
                    )
                    parts[i].append(self._regions(evidence[0], boxes, size, (number,), evidence))
        return [self._joined(of_image, image.size) for of_image, image in zip(parts, batch.images, strict=True)]

    def _answers(self, features: Tensor, texts: dict[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
        """For each prompt (tokens of the answer, the probability of each); without special tokens."""
        embedded = self._model.get_input_embeddings()(texts["input_ids"])
        mask = torch.cat([texts["attention_mask"].new_ones(features.shape[:2]), texts["attention_mask"]], 1)
        encoded = self._model.get_encoder()(
            inputs_embeds=torch.cat([features.to(embedded.dtype), embedded], 1), attention_mask=mask
        )
        hidden = BaseModelOutput(last_hidden_state=encoded.last_hidden_state)
        tokens = self._model.generate(
            encoder_outputs=hidden, attention_mask=mask, do_sample=False, max_new_tokens=self._new_tokens
        )
        # the probabilities of the answer as a whole: those of the search are of its constraints, too
        logits = self._model(
            encoder_outputs=hidden, attention_mask=mask, decoder_input_ids=tokens[:, :-1], use_cache=False
        ).logits
        tokens = tokens[:, 1:]
        chances = logits.float().log_softmax(-1).gather(-1, tokens[..., None])[..., 0].exp()
        special = torch.isin(tokens, torch.tensor(self._marks, device=tokens.device))
        return [(t[~s].cpu(), c[~s].cpu()) for t, c, s in zip(tokens, chances, special, strict=True)]

    @property
    def _marks(self) -> list[int]:
        return [self._tokenizer.bos_token_id, self._tokenizer.eos_token_id, self._tokenizer.pad_token_id]

    def _boxes(self, tokens: Tensor, chances: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Boxes (n, 4) xyxy in pixels of an image of ``size`` (height, width), and their tokens' probabilities (n, 4).

        Boxes are what transformers' post-processing makes of the answer.
        """
        parser = self._processor.post_processor
        text, spans = parser.decode_with_spans(tokens.tolist())
        token_at = {start: number for number, (start, _) in enumerate(spans)}
        boxes: list[list[float]] = []
        numbers: list[int] = []
        for group in _GROUP.finditer(text):
            for found in parser.parse_phrase_grounding_from_text_and_spans(group.group(), size[::-1]):
                boxes += found["bbox"]
                numbers += [token_at[group.start() + box.start()] for box in _BOX.finditer(group.group())]
        first = torch.tensor(numbers, dtype=torch.long)
        return torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4), chances[first[:, None] + torch.arange(4)]
