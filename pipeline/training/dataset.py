"""Builds training batches: read a record, prompt, mirror, resize, tokenise, map spans to tokens.

A batch is a function of (settings, shards, step). An unusable record is replaced by a later one of
its source and counted; so is a box whose span was truncated by the tokenizer.
"""

from __future__ import annotations

import logging
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from multiprocessing.util import Finalize
from typing import Any

import numpy as np
import torch
from accelerate.utils import recursively_apply
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from model import GlipProcessor
from model.grounding import phrase_tokens, positive_map
from model.image_processing_glip import resized_size
from pipeline.config import TrainConfig
from pipeline.data.class_names import LabelSpaces, needed_class_names
from pipeline.data.images import ImageError, open_image
from pipeline.data.records import GroundingRecord
from pipeline.data.training_shards import ShardSet
from pipeline.errors import InputError, RunError
from pipeline.training.image_batch import stack
from pipeline.training.prompts import (
    Prompted,
    detection_prompt,
    grounding_prompt,
    is_pseudo,
    names_prompt,
    phrases_prompt,
)
from pipeline.training.sampling import Mixture, PicklableCache, SourceOrder, generator
from pipeline.training.shared_memory import BufferHandle, SharedBuffers, make_buffers

log = logging.getLogger("glip_self_train")
MAX_UNUSABLE = 20
"""Unusable records in a row after which the source itself is considered broken."""

PREFETCH_FACTOR = 4
"""Batches that a worker prepares ahead."""

OTHER_RECORDS = 50
"""Records searched for absent names; a set of few nouns may have fewer than a prompt needs."""

CAPTIONS_READ = 50
MANY_SIDED = 0.1
"""Share of captions that name a side from which flips are warned of; referring expressions often do."""
_SIDES = re.compile(r"\b(left|right)(most)?\b", re.IGNORECASE)


class TrainingData(Dataset[dict[str, Any]]):
    """The records of a training run, in the order of its mixture, and their batches.

    Raises:
        InputError: the mixture and the sources differ, a source has no records, or a detection set
            has no class names.
    """

    def __init__(self, config: TrainConfig, sources: Mapping[str, Sequence[str]], processor: GlipProcessor) -> None:
        self.config, self.processor = config, processor
        self.sets = {name: ShardSet(shards) for name, shards in sources.items()}
        self.spaces = LabelSpaces([s for shards in sources.values() for s in shards])
        needed_class_names(sources, self.spaces)  # fails for a set without them, before anything is trained
        self.orders = {n: SourceOrder(s.counts, seed=config.seed, name=n) for n, s in self.sets.items()}
        self.mixture = Mixture(self._shares(), sorted(sources), seed=config.seed)
        self.first = self._phase("first", config.first_steps, config.first_mixture)
        self.last = self._phase("last", config.last_steps, config.last_mixture)
        if config.last_steps and config.first_steps + config.last_steps > config.steps:
            raise InputError(
                f"first_steps {config.first_steps} and last_steps {config.last_steps}: want at most the {config.steps} "
                "steps of the training together"
            )
        self._count_tokens = PicklableCache(self._token_count, 100_000)

    def _phase(self, name: str, steps: int, shares: Mapping[str, float]) -> Mixture | None:
        """The mixture of the first or last steps, if there are any."""
        if not steps:
            return None
        if not shares or not shares.keys() <= self.sets.keys():
            raise InputError(f"{name}_mixture {shares}: want shares of some of {sorted(self.sets)}")
        return Mixture(shares, sorted(shares), seed=self.config.seed)

    def _shares(self) -> dict[str, float]:
        if self.config.mixture_unit == "shares":
            return dict(self.config.mixture)
        copies = self.config.mixture or dict.fromkeys(self.orders, 1.0)
        return {n: c * self.orders[n].total if n in self.orders else c for n, c in copies.items()}

    def locate(self, position: int) -> tuple[str, int]:
        """(source, number of its records before) at a position of the stream."""
        first = self.config.first_steps * self.config.batch_size
        if self.first is not None and position < first:
            return self.first.locate(position)
        last = (self.config.steps - self.config.last_steps) * self.config.batch_size
        if self.last is not None and position >= last:
            return self.last.locate(position - last)
        return self.mixture.locate(position - first)

    @property
    def totals(self) -> dict[str, int]:
        """Records of each source."""
        return {name: order.total for name, order in self.orders.items()}

    def flip_warnings(self) -> list[str]:
        """Sources whose captions often say left or right, which a horizontal flip does not change."""
        warnings = []
        for name, records in self.sets.items() if self.config.flip else ():
            captions = []
            for row in range(min(records.counts[0], CAPTIONS_READ)):
                with suppress(InputError):
                    captions.append(records.record(0, row).caption or "")
            sided = sum(bool(_SIDES.search(caption)) for caption in captions)
            if captions and sided >= MANY_SIDED * len(captions):
                warnings.append(
                    f"source {name}: {sided} of its first {len(captions)} captions say left or right, which a flip of "
                    f"the image does not exchange: found flip={self.config.flip:g}; want flip=0"
                )
        return warnings

    def loader(
        self, *, first: int, rank: int = 0, processes: int = 1, workers: int = 0, pin: bool = False
    ) -> Iterator[dict[str, Any]]:
        """Micro-batches of one process from step ``first`` on; ``config.accumulate`` make a step.

        Every process gets as many, of the same size. ``workers`` do not change them.
        """
        size = self.config.batch_size // (processes * self.config.accumulate)
        buffers = self._shared_buffers(size, workers)
        micro_batches = range(first * self.config.accumulate, self.config.steps * self.config.accumulate)
        starts = ((number * processes + rank) * size for number in micro_batches)
        positions = (list(range(start, start + size)) for start in starts)
        loader = DataLoader(
            self, batch_sampler=positions, collate_fn=partial(self._collate_packed, buffers),
            num_workers=workers, pin_memory=pin, worker_init_fn=self._start_worker,
            prefetch_factor=PREFETCH_FACTOR if workers else None,
        )  # fmt: skip
        return _unpacked(iter(loader), buffers)

    def _shared_buffers(self, images: int, workers: int) -> SharedBuffers | None:
        """Buffers of the largest possible size for all batches being prepared or in use."""
        multiple = self.processor.image_processor.pad_to_multiple
        longest = (max(self.config.max_image_size, *self.config.image_sizes) // multiple + 1) * multiple
        in_use = 2 * self.config.accumulate  # the step's, and the last step's until they are replaced
        per_worker = PREFETCH_FACTOR + 1 + -(-in_use // max(workers, 1))
        return make_buffers(workers, per_worker, images * longest * longest * 3)

    def _collate_packed(self, buffers: SharedBuffers | None, samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        handle: BufferHandle | None = None

        def allocate(shape: tuple[int, ...]) -> np.ndarray:
            nonlocal handle
            handle = None if buffers is None else buffers.acquire(shape)
            return np.empty(shape, np.uint8) if handle is None else handle.array()

        batch = self.collate(samples, allocate)
        pixels = batch.pop("pixels")
        return {"pixels": handle or pixels, **recursively_apply(torch.Tensor.numpy, batch)}

    def _start_worker(self, _: int) -> None:
        prepare_worker()
        for records in self.sets.values():
            records.forget_open_files()

    def __getitem__(self, position: int) -> dict[str, Any]:
        return self.sample(position)

    def sample(self, position: int) -> dict[str, Any]:
        """The record at a position: ``prompted``, ``image`` (mirrored and resized) and ``name``.

        ``lost`` counts unusable records that were replaced, and boxes without room in the prompt.

        Raises:
            InputError: MAX_UNUSABLE records in a row cannot be used.
        """
        source, n = self.locate(position)
        records, order, lost = self.sets[source], self.orders[source], Counter[str]()
        for attempt in range(MAX_UNUSABLE):
            # the substitute is taken whole epochs later, so that no other position shifts
            shard, row = order.locate(n + attempt * order.total)
            rng = generator(self.config.seed, "sample", position, attempt)
            try:
                return self._make(records, source, shard, row, rng, lost)
            except (ImageError, InputError) as error:
                lost["unusable_record"] += 1
                name = records.name(shard, row)
                log.warning("%s: skipped: %s", name, error)
                last = f"{name}: {str(error).splitlines()[0].removeprefix(f'{name}: ')}"
        raise InputError(f"source {source}: {MAX_UNUSABLE} unusable records in a row; last: {last}")

    def _make(
        self, records: ShardSet, source: str, shard: int, row: int, rng: np.random.Generator, lost: Counter[str]
    ) -> dict[str, Any]:
        record = records.record(shard, row)
        prompted = self._prompt(record, source, records.shards[shard], rng)
        image = open_image(records.image(shard, row))
        if image.size != (record.image_size[1], record.image_size[0]):
            raise InputError(f"image is {image.size[1]}x{image.size[0]}, its record says {record.image_size}")
        if rng.random() < self.config.flip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            for boxes in (prompted.boxes, prompted.ignore_boxes):
                boxes[:, [0, 2]] = image.width - boxes[:, [2, 0]]
        for boxes in (prompted.boxes, prompted.ignore_boxes):  # GLIP's end at the last pixel (GLIP spec 9.3)
            boxes[:, 2:] = np.maximum(boxes[:, 2:] - 1, boxes.reshape(-1, 2, 2).mean(1))
        sizes = self.config.image_sizes
        shortest = sizes[int(rng.integers(len(sizes)))]
        height, width = resized_size(image.width, image.height, shortest, self.config.max_image_size)
        scale = np.array([width / image.width, height / image.height] * 2, np.float32)
        for boxes in (prompted.boxes, prompted.ignore_boxes):
            boxes *= scale
            boxes[(boxes <= 1).all(1), 2:] = 1.01  # in the first pixel they would be taken for normalised ones
        lost["no_room_in_prompt"] += prompted.lost
        if image.size != (width, height):
            image = image.resize((width, height), Image.Resampling.BILINEAR)  # antialiased when shrinking
        return {"image": image, "prompted": prompted, "name": records.name(shard, row), "lost": lost}

    def _prompt(self, record: GroundingRecord, source: str, shard: str, rng: np.random.Generator) -> Prompted:
        limit = self.processor.max_text_length
        if record.kind == "detection":
            space = self.spaces.of(shard, record.dataset)
            if not space:
                raise InputError(f"no class names for detection set {record.dataset!r}: its dataset.json is missing")
            return detection_prompt(
                record, space, self.config.prompt, rng, token_count=self._count_tokens, max_tokens=limit,
                noisy=self.config.noisy,
            )  # fmt: skip
        noisy = self.config.noisy
        has_names = noisy.names_share and is_pseudo(record) and any(region.root for region in record.regions)
        if has_names and rng.random() < noisy.names_share:
            return names_prompt(
                record, self.config.prompt, noisy, rng,
                other_names=self._other_names(source, rng), token_count=self._count_tokens, max_tokens=limit,
            )  # fmt: skip
        share = self.config.prompt.phrases_share
        if share and record.regions and rng.random() < share:
            return phrases_prompt(
                record, self.config.prompt, noisy, rng,
                other_nouns=self._other_nouns(source, rng), token_count=self._count_tokens, max_tokens=limit,
            )  # fmt: skip
        return grounding_prompt(
            record, noisy, rng, other_caption=lambda r: self._other_record(source, r).caption or "",
            token_count=self._count_tokens, max_tokens=limit,
        )  # fmt: skip

    def _other_record(self, source: str, rng: np.random.Generator) -> GroundingRecord:
        return self.sets[source].record(*self.orders[source].draw(rng))

    def _other_names(self, source: str, rng: np.random.Generator) -> Iterator[str]:
        for _ in range(OTHER_RECORDS):
            yield from (region.root for region in self._other_record(source, rng).regions if region.root)

    def _other_nouns(self, source: str, rng: np.random.Generator) -> Iterator[str]:
        """Head nouns of other images; of human labels, which state none, the last words of the phrases."""
        for _ in range(OTHER_RECORDS):
            for region in self._other_record(source, rng).regions:
                if noun := region.root or region.phrase.split()[-1:]:
                    yield noun if isinstance(noun, str) else noun[0]

    def _token_count(self, text: str) -> int:
        return len(self.processor.tokenizer(text, add_special_tokens=False)["input_ids"])

    def collate(
        self, samples: Sequence[dict[str, Any]], allocate: Callable[[tuple[int, ...]], np.ndarray] | None = None
    ) -> dict[str, Any]:
        """Samples -> the model's inputs and ``labels``; ``pixels`` are uint8 (:class:`Normaliser`).

        Also ``names`` of the records, their ``captions``, the labels' ``spans`` by box, and
        ``lost``: counts by reason. ``allocate``: see :func:`stack`.
        """
        pixels, sizes = stack([s["image"] for s in samples], self.processor.image_processor.pad_to_multiple, allocate)
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
            "pixels": pixels, "image_sizes": sizes, **inputs, "labels": labels, "names": [s["name"] for s in samples],
            "captions": [s["prompted"].caption for s in samples], "spans": spans,
            "lost": {k: v for k, v in lost.items() if v},
        }  # fmt: skip

    def _label(self, prompted: Prompted, offsets: torch.Tensor) -> tuple[dict[str, torch.Tensor], list[int]]:
        """The label, and the indices of its boxes: those whose span was not truncated."""
        length = len(offsets)
        tokens, truncated = phrase_tokens(offsets, prompted.spans)
        keep = [i for i in range(len(tokens)) if i not in truncated]
        # a box without its tokens must not become a negative for the tokens that remain
        ignore = np.concatenate([prompted.ignore_boxes, prompted.boxes[truncated]])
        label = {
            "boxes": torch.from_numpy(prompted.boxes[keep]),
            "positive_map": positive_map([tokens[i] for i in keep], length),
            "weights": torch.from_numpy(prompted.weights[keep]),
            "regress": torch.from_numpy(prompted.regress[keep]),
        }
        if len(ignore):
            label["ignore_boxes"] = torch.from_numpy(ignore)
        if prompted.uncertain:
            uncertain, _ = phrase_tokens(offsets, [[s] for s in prompted.uncertain])
            label["token_ignore"] = positive_map(uncertain, length).amax(0) > 0
        return label, keep


def _unpacked(batches: Iterator[dict[str, Any]], buffers: SharedBuffers | None) -> Iterator[dict[str, Any]]:
    """Batches with tensors again; a worker's InputError or RunError without torch's traceback.

    torch sends every tensor between processes as a file descriptor over a socket, which costs more
    than the few numbers in most of them. So workers send arrays, and images in ``buffers``, which
    this generator keeps alive.
    """
    try:
        for batch in batches:
            if isinstance(batch["pixels"], BufferHandle):
                batch["pixels"] = batch["pixels"].tensor()
            yield recursively_apply(torch.from_numpy, batch, test_type=lambda value: isinstance(value, np.ndarray))
            del batch  # or its buffer would stay in use until the next batch arrives
    except (InputError, RunError) as error:
        kind = type(error)
        raise kind(str(error).strip().splitlines()[-1].removeprefix(f"pipeline.errors.{kind.__name__}: ")) from None


def prepare_worker() -> None:
    """Prepare a worker process: no tokenizer threads, and an exit without the parent's hooks.

    Libraries of the parent (Prefect's client, anyio) register hooks that stop their threads at
    exit. A forked worker inherits the hooks without the threads; a hook that raises would make a
    worker that finished look like one that failed.
    """
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    Finalize(None, _exit_without_hooks, exitpriority=-1000)  # after the finalisers that flush its queues


def _exit_without_hooks() -> None:
    if sys.exc_info()[0] is None:  # else multiprocessing has to print a traceback and set the exit status
        for stream in (sys.stdout, sys.stderr):
            with suppress(AttributeError, ValueError, OSError):  # closed, or None
                stream.flush()
        os._exit(0)
