"""From places in the stream to batches: read, prompt, mirror, resize, tokenise, map spans to tokens.

A batch depends on (settings, shards, step) alone. A record that cannot be used is replaced by the next one of its
source and counted; a box whose span the tokenizer cut away goes with its span, and is counted.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, Sampler

from model import GlipProcessor
from model.grounding import phrase_tokens, positive_map
from model.image_processing_glip import resized_size
from pipeline.config import TrainConfig
from pipeline.data.class_names import LabelSpaces, needed_class_names
from pipeline.data.images import ImageError, open_image
from pipeline.data.records import GroundingRecord
from pipeline.data.training_shards import ShardSet
from pipeline.errors import InputError, RunError
from pipeline.training.dataloader_workers import prepare_worker
from pipeline.training.image_batch import stack
from pipeline.training.prompts import Prompted, detection_prompt, grounding_prompt, is_pseudo, names_prompt
from pipeline.training.sampling import Mixture, Remembered, SourceOrder, generator
from pipeline.training.shared_memory import Filled, SharedBuffers, slots_for

log = logging.getLogger("glip_self_train")
TRIES = 20
"""Unusable records in a row after which the source itself must be wrong."""

AHEAD = 4
"""Batches that a worker makes before they are asked for."""

OTHER_RECORDS = 50
"""Records looked at for absent names; a set of few nouns may not have as many as a prompt wants."""


class TrainingData:
    """The mixture of a training run, its records and how they become batches.

    Raises:
        InputError: the mixture and the sources differ, shards without records, or a detection set without class names.
    """

    def __init__(self, config: TrainConfig, sources: Mapping[str, Sequence[str]], processor: GlipProcessor) -> None:
        self.config, self.processor = config, processor
        self.sets = {name: ShardSet(shards) for name, shards in sources.items()}
        self.spaces = LabelSpaces([s for shards in sources.values() for s in shards])
        needed_class_names(sources, self.spaces)  # a set without them is told before anything is trained
        self.orders = {n: SourceOrder(s.counts, seed=config.seed, name=n) for n, s in self.sets.items()}
        self.mixture = Mixture(self._shares(), sorted(sources), seed=config.seed)
        self.first = None
        if config.first_steps:
            self.first = Mixture(config.first_mixture, self._first_sources(sources), seed=config.seed)
        self._count_tokens = Remembered(self._token_count, 100_000)

    def _shares(self) -> dict[str, float]:
        if self.config.mixture_unit == "shares":
            return dict(self.config.mixture)
        copies = self.config.mixture or dict.fromkeys(self.orders, 1.0)
        return {n: c * self.orders[n].total if n in self.orders else c for n, c in copies.items()}

    def _first_sources(self, sources: Mapping[str, Sequence[str]]) -> list[str]:
        unknown = set(self.config.first_mixture) - set(sources)
        if unknown or not self.config.first_mixture:
            raise InputError(f"first_mixture {self.config.first_mixture}: want shares of some of {sorted(sources)}")
        return sorted(self.config.first_mixture)

    def locate(self, place: int) -> tuple[str, int]:
        """(source, how many of it came before) of a place of the stream; the first steps have a mixture of their own."""
        first = self.config.first_steps * self.config.batch_size
        if self.first is not None and place < first:
            return self.first.locate(place)
        return self.mixture.locate(place - first)

    @property
    def totals(self) -> dict[str, int]:
        """Records of each source."""
        return {name: order.total for name, order in self.orders.items()}

    def loader(
        self, *, first: int, rank: int = 0, processes: int = 1, workers: int = 0, pin: bool = False
    ) -> Iterator[dict[str, Any]]:
        """Micro-batches of steps ``first``, ``first`` + 1, ... for one process: its slices of every step's places.

        ``config.accumulate`` of them make a step. Every process gets as many, and of the same size, by construction;
        ``workers`` change nothing but the time.
        """
        sampler = _Steps(self.config, first, rank, processes)
        slots = self._slots(sampler.share, workers)
        loader = DataLoader(
            _Places(self), batch_sampler=sampler, collate_fn=partial(self._collate_packed, slots), num_workers=workers,
            pin_memory=pin, worker_init_fn=self._start_worker, prefetch_factor=AHEAD if workers else None,
        )  # fmt: skip
        return _unpacked(iter(loader), slots)

    def _slots(self, images: int, workers: int) -> SharedBuffers | None:
        """Places for all the batches that are under way or in use, of any size that images may come to."""
        multiple = self.processor.image_processor.pad_to_multiple
        longest = (max(self.config.max_image_size, *self.config.image_sizes) // multiple + 1) * multiple
        in_use = 2 * self.config.accumulate  # the step's, and the last step's until they are replaced
        return slots_for(workers, AHEAD + 1 + -(-in_use // max(workers, 1)), images * longest * longest * 3)

    def _collate_packed(self, slots: SharedBuffers | None, samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        filled: Filled | None = None

        def room(shape: tuple[int, ...]) -> np.ndarray:
            nonlocal filled
            filled = None if slots is None else slots.take(shape)
            return np.empty(shape, np.uint8) if filled is None else filled.array()

        batch = self.collate(samples, room)
        packed = {
            name: value if name == "pixels" else _map(torch.Tensor, torch.Tensor.numpy, value)
            for name, value in batch.items()
        }
        return packed if filled is None else {**packed, "pixels": filled}

    def _start_worker(self, _: int) -> None:
        prepare_worker()
        for records in self.sets.values():
            records.forget_open_files()

    def sample(self, place: int) -> dict[str, Any]:
        """The record at a place, prompted and with its image mirrored and resized; ``lost`` counts what went why."""
        source, n = self.locate(place)
        records, order, lost = self.sets[source], self.orders[source], Counter[str]()
        for attempt in range(TRIES):
            # the substitute comes from a stream of its own, far behind, so that no other place shifts
            spot = order.locate(n if attempt == 0 else n + attempt * order.total)
            rng = generator(self.config.seed, "sample", place, attempt)
            try:
                return self._make(records, source, spot, rng, lost)
            except (ImageError, InputError) as error:
                lost["unusable_record"] += 1
                name = records.name(*spot)
                log.warning("%s: left out: %s", name, error)
                last = f"{name}: {str(error).splitlines()[0].removeprefix(f'{name}: ')}"
        raise InputError(f"source {source}: {TRIES} unusable records in a row; last: {last}")

    def _make(
        self,
        records: ShardSet,
        source: str,
        spot: tuple[int, int],
        rng: np.random.Generator,
        lost: Counter[str],
    ) -> dict[str, Any]:
        record = records.record(*spot)
        prompted = self._prompt(record, source, records.shards[spot[0]], rng)
        image = open_image(records.image(*spot))
        if image.size != (record.image_size[1], record.image_size[0]):
            raise InputError(f"image is {image.size[1]}x{image.size[0]}, its record says {record.image_size}")
        if rng.random() < self.config.flip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            for boxes in (prompted.boxes, prompted.ignore_boxes):
                boxes[:, [0, 2]] = image.width - boxes[:, [2, 0]]
        for boxes in (
            prompted.boxes,
            prompted.ignore_boxes,
        ):  # GLIP's name the last pixel that they cover (GLIP spec 9.3)
            boxes[:, 2:] = np.maximum(boxes[:, 2:] - 1, boxes.reshape(-1, 2, 2).mean(1))
        sizes = self.config.image_sizes
        shortest = sizes[int(rng.integers(len(sizes)))]
        height, width = resized_size(image.width, image.height, shortest, self.config.max_image_size)
        scale = np.array([width / image.width, height / image.height] * 2, np.float32)
        prompted.boxes *= scale
        prompted.ignore_boxes *= scale
        lost["no_room_in_prompt"] += prompted.lost
        if image.size != (width, height):
            image = image.resize((width, height), Image.Resampling.BILINEAR)  # averages when it shrinks
        return {
            "image": image,
            "prompted": prompted,
            "name": records.name(*spot),
            "lost": lost,
        }

    def _prompt(self, record: GroundingRecord, source: str, shard: str, rng: np.random.Generator) -> Prompted:
        limit = self.processor.max_text_length
        if record.kind == "detection":
            space = self.spaces.of(shard, record.dataset)
            if not space:
                raise InputError(f"no class names for detection set {record.dataset!r}: its dataset.json is missing")
            return detection_prompt(
                record, space, self.config.prompt, rng, token_count=self._count_tokens, max_tokens=limit
            )
        noisy = self.config.noisy
        named = noisy.names_share and is_pseudo(record) and any(region.root for region in record.regions)
        if named and rng.random() < noisy.names_share:
            return names_prompt(
                record, self.config.prompt, noisy, rng,
                other_names=self._other_names(source, rng), token_count=self._count_tokens, max_tokens=limit,
            )  # fmt: skip
        return grounding_prompt(
            record,
            noisy,
            rng,
            other_caption=lambda r: self._other_caption(source, r),
            token_count=self._count_tokens,
            max_tokens=limit,
        )

    def _other_record(self, source: str, rng: np.random.Generator) -> GroundingRecord:
        return self.sets[source].record(*self.orders[source].draw(rng))

    def _other_caption(self, source: str, rng: np.random.Generator) -> str:
        return self._other_record(source, rng).caption or ""

    def _other_names(self, source: str, rng: np.random.Generator) -> Iterator[str]:
        for _ in range(OTHER_RECORDS):
            yield from (region.root for region in self._other_record(source, rng).regions if region.root)

    def _token_count(self, text: str) -> int:
        return len(self.processor.tokenizer(text, add_special_tokens=False)["input_ids"])

    def collate(
        self, samples: Sequence[dict[str, Any]], room: Callable[[tuple[int, ...]], np.ndarray] | None = None
    ) -> dict[str, Any]:
        """Samples -> the model's inputs with ``labels`` and ``pixels`` as bytes (see Normaliser), plus ``names`` of the records, their ``captions`` and
        the labels' ``spans``, box by box, and what was ``lost``. ``room``: see :func:`stack`."""
        pixels, sizes = stack([s["image"] for s in samples], self.processor.image_processor.pad_to_multiple, room)
        inputs = dict(self.processor.tokenize([s["prompted"].caption for s in samples]))
        offsets = inputs.pop("offset_mapping")
        lost: Counter[str] = Counter()
        labels, spans = [], []
        for sample, offset in zip(samples, offsets, strict=True):
            lost.update(sample["lost"])
            label, kept = self._label(sample["prompted"], offset)
            labels.append(label)
            spans.append([sample["prompted"].spans[i] for i in kept])
            lost["span_beyond_text_limit"] += len(sample["prompted"].spans) - len(kept)
        return {
            "pixels": pixels,
            "image_sizes": sizes,
            **inputs,
            "labels": labels,
            "names": [s["name"] for s in samples],
            "captions": [s["prompted"].caption for s in samples],
            "spans": spans,
            "lost": {k: v for k, v in lost.items() if v},
        }

    def _label(self, prompted: Prompted, offsets: torch.Tensor) -> tuple[dict[str, torch.Tensor], list[int]]:
        """The label, and which of the prompted boxes are in it: not those whose words the tokenizer cut away."""
        length = len(offsets)
        tokens, missing = phrase_tokens(offsets, prompted.spans)
        gone = set(missing)
        keep = [i for i in range(len(tokens)) if i not in gone]
        # a box without its words must not become a negative for the words that stayed
        ignore = np.concatenate([prompted.ignore_boxes, prompted.boxes[missing]])
        label = {
            "boxes": torch.from_numpy(prompted.boxes[keep]),
            "positive_map": positive_map([tokens[i] for i in keep], length),
            "weights": torch.from_numpy(prompted.weights[keep]),
            "regress": torch.from_numpy(prompted.regress[keep]),
        }
        if len(ignore):
            label["ignore_boxes"] = torch.from_numpy(ignore)
        if prompted.uncertain:
            unsure, _ = phrase_tokens(offsets, [[s] for s in prompted.uncertain])
            label["token_ignore"] = positive_map(unsure, length).amax(0) > 0
        return label, keep


class _Places(Dataset):
    def __init__(self, data: TrainingData) -> None:
        self._data = data

    def __getitem__(self, place: int) -> dict[str, Any]:
        return self._data.sample(place)


class _Steps(Sampler[list[int]]):
    def __init__(self, config: TrainConfig, first: int, rank: int, processes: int) -> None:
        self._steps, self._batch, self._pieces = range(first, config.steps), config.batch_size, config.accumulate
        self._rank, self._processes = rank, processes
        self.share = config.batch_size // (processes * config.accumulate)

    def __iter__(self) -> Iterator[list[int]]:
        for step in self._steps:
            for piece in range(self._pieces):
                start = step * self._batch + (piece * self._processes + self._rank) * self.share
                yield list(range(start, start + self.share))

    def __len__(self) -> int:
        return len(self._steps) * self._pieces


def _unpacked(batches: Iterator[dict[str, Any]], slots: SharedBuffers | None) -> Iterator[dict[str, Any]]:
    """Batches as they were collated; a worker's InputError or RunError without the traceback that torch wraps around it.

    Between processes every tensor is a file descriptor sent over a socket, which costs more than the few numbers in most of them;
    so all but the images travel as arrays, and the images in ``slots``, which this keeps while it runs.
    """
    try:
        for batch in batches:
            if isinstance(batch["pixels"], Filled):
                batch["pixels"] = batch["pixels"].tensor()
            yield _map(np.ndarray, torch.from_numpy, batch)
            del batch  # or its place would be taken until the next one is here
    except (InputError, RunError) as error:
        kind = type(error)
        raise kind(str(error).strip().splitlines()[-1].removeprefix(f"pipeline.errors.{kind.__name__}: ")) from None


def _map(kind: type, change: Any, value: Any) -> Any:
    """``value`` with every ``kind`` inside its dicts and lists changed."""
    if isinstance(value, kind):
        return change(value)
    if isinstance(value, dict):
        return {name: _map(kind, change, v) for name, v in value.items()}
    return [_map(kind, change, v) for v in value] if isinstance(value, list) else value
