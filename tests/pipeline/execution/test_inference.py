"""The inference loop: order, bounds and times; an error anywhere is its shard's alone, a lost device the worker's."""

from __future__ import annotations

import threading
import time

import pytest
import torch

from pipeline.execution.inference import SHARDS_IN_HAND, run_inference
from pipeline.execution.reports import ShardReport
from pipeline.execution.worker import ShardJob


class Queue:
    """A WorkQueue of shards "0", "1", ... that remembers what it is given."""

    def __init__(self, shards: int) -> None:
        self._jobs = iter([ShardJob(f"{i}.tar", str(i), "f") for i in range(shards)])
        self.reports: dict[str, ShardReport] = {}
        self.errors: dict[str, str] = {}
        self.parts: dict[str, float] = {}
        self.images = self.taken = self.most_ahead = 0

    def take(self) -> ShardJob | None:
        self.most_ahead = max(self.most_ahead, self.taken - len(self.reports) - len(self.errors))
        job = next(self._jobs, None)
        self.taken += job is not None
        return job

    def done(self, job: ShardJob, report: ShardReport) -> None:
        self.reports[job.name] = report

    def failed(self, job: ShardJob, error: BaseException | str) -> None:
        self.errors[job.name] = str(error)

    def advance(self, n: int, unit: str) -> None:
        assert unit == "images"
        self.images += n

    def spent(self, part: str, seconds: float) -> None:
        assert seconds >= 0
        self.parts[part] = self.parts.get(part, 0.0) + seconds


class Shard:
    """Numbers 0..19 in windows of five, doubled, in batches of up to three; ``broken`` raises in its method."""

    def __init__(self, job: ShardJob, broken: dict[str, str], error: Exception, seen: dict[str, set[str]]) -> None:
        self.job, self._broken, self._error, self._seen = job, broken.get(job.name), error, seen
        self._waiting: list[int] = []
        self.found: list[int] = []
        self._enter("open")

    def _enter(self, method: str) -> None:
        self._seen.setdefault(method, set()).add(threading.current_thread().name)
        if self._broken == method:
            raise self._error

    def windows(self):
        for start in range(0, 20, 5):
            if start == 10:
                self._enter("windows")
            yield range(start, start + 5)

    def prepare(self, unit: int) -> int:
        time.sleep(0.001 * (unit % 3))
        if unit == 7:
            self._enter("prepare")
        return 2 * unit

    def collate(self, ready: int | None):
        if ready is not None:
            self._waiting.append(ready)
        if ready == 14:
            self._enter("collate")
        if len(self._waiting) == 3 or (ready is None and self._waiting):
            yield self._waiting
            self._waiting = []

    def predict(self, batch: list[int]) -> int:
        self._enter("predict")
        self.found += batch
        return len(batch)

    def finish(self) -> ShardReport:
        self._enter("finish")
        return self.job.report("test", {}, {}, numbers={str(i): n for i, n in enumerate(self.found)})


def run(shards: int, decoders: int, broken: dict[str, str], error: Exception = RuntimeError("broken")):
    queue, seen = Queue(shards), {}
    run_inference(queue, iter(queue.take, None), lambda job: Shard(job, broken, error, seen), decoders)
    return queue, seen


@pytest.mark.parametrize("decoders", [1, 4])
def test_results_come_in_order_from_few_shards_at_a_time(decoders):
    queue, seen = run(7, decoders, {})
    assert list(queue.reports) == list("0123456") and not queue.errors
    for report in queue.reports.values():
        assert list(report.numbers.values()) == [2 * i for i in range(20)]
    assert queue.images == 140 and set(queue.parts) == {"read", "decode", "wait", "model", "write"}
    assert queue.most_ahead <= SHARDS_IN_HAND + 2  # one being written, one that waits for that
    assert seen["predict"] == {threading.current_thread().name} and seen["finish"] == {"write_0"}


@pytest.mark.parametrize("method", ["open", "windows", "prepare", "collate", "predict", "finish"])
def test_an_error_is_its_shards_alone(method):
    queue, _ = run(4, 2, {"1": method, "3": method})
    assert sorted(queue.reports) == ["0", "2"] and queue.errors == {"1": "broken", "3": "broken"}
    assert all(list(r.numbers.values()) == [2 * i for i in range(20)] for r in queue.reports.values())


def test_a_lost_device_ends_the_worker():
    queue, seen = Queue(5), {}
    lost = torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
    with pytest.raises(torch.AcceleratorError):
        run_inference(queue, iter(queue.take, None), lambda job: Shard(job, {"1": "predict"}, lost, seen), 2)
    assert list(queue.errors) == ["1"] and list(queue.reports) == ["0"] and queue.taken <= 1 + SHARDS_IN_HAND
