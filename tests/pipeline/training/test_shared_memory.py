"""Places of shared memory: none is written to while anything still lies on it."""

import gc
import multiprocessing
import os

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset
from torch.utils.data._utils.pin_memory import pin_memory

from pipeline.training.dataset import prepare_worker
from pipeline.training.shared_memory import SharedBuffers, make_buffers
from tests.pipeline.training.test_dataset import data

SHAPE = (2, 4, 5, 3)


class Worker:
    id = 1


@pytest.fixture
def as_worker(monkeypatch):
    monkeypatch.setattr("pipeline.training.shared_memory.get_worker_info", lambda: Worker)


def test_a_place_is_free_again_when_the_last_tensor_on_it_is_gone(as_worker):
    buffers = SharedBuffers(workers=2, per_worker=2, size=1000)
    first, second = buffers.acquire(SHAPE), buffers.acquire(SHAPE)
    assert {first.index, second.index} == {2, 3}  # its own, not those of worker 0
    assert buffers.acquire(SHAPE) is None
    first.array()[:] = 7
    tensor = first.tensor()
    part, as_array = tensor[1:, :, 2:], tensor.view(-1)[:3].numpy()
    del tensor
    gc.collect()
    assert buffers.acquire(SHAPE) is None and bool((part == 7).all())
    del part
    gc.collect()
    assert buffers.acquire(SHAPE) is None and bool((as_array == 7).all())
    del as_array
    gc.collect()
    assert buffers.acquire(SHAPE) == first


def test_what_is_too_large_for_a_place_gets_none(as_worker):
    buffers = SharedBuffers(workers=2, per_worker=1, size=1000)
    assert buffers.acquire((1, 100, 100, 3)) is None and buffers.acquire((10, 10, 10, 3)) is not None


def test_outside_of_a_worker_there_is_none():
    assert SharedBuffers(workers=1, per_worker=1, size=1000).acquire(SHAPE) is None


def test_a_tensor_outlives_its_loader(as_worker):
    buffers = SharedBuffers(workers=2, per_worker=1, size=1000)
    handle = buffers.acquire(SHAPE)
    handle.array()[:] = 3
    tensor = handle.tensor()
    del buffers
    gc.collect()
    assert bool((tensor == 3).all())


def test_loaders_without_forked_workers_have_none(monkeypatch):
    assert make_buffers(0, 4, 1000) is None
    monkeypatch.setattr(multiprocessing, "get_start_method", lambda allow_none=False: "spawn")
    assert make_buffers(2, 4, 1000) is None


def test_more_than_the_machine_promises_is_none():
    assert make_buffers(2, 4, 1 << 61) is None


class Numbered(Dataset):
    """Each batch is handle with its number, in a place if there is one."""

    def __init__(self, buffers):
        self.buffers = buffers

    def __len__(self):
        return 60

    def __getitem__(self, number):
        handle = self.buffers.acquire(SHAPE)
        array = np.empty(SHAPE, np.uint8) if handle is None else handle.array()
        array[:] = number
        return torch.from_numpy(array.copy()) if handle is None else handle


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork on this system")
@pytest.mark.parametrize("held", [0, 3, 60])
def test_batches_stay_what_they_are_while_they_are_held(held):
    buffers, kept, ways = make_buffers(2, 6, 1000), [], []
    loader = DataLoader(Numbered(buffers), batch_size=None, num_workers=2, worker_init_fn=lambda _: prepare_worker())
    for number, batch in enumerate(loader):
        ways.append(type(batch).__name__)
        kept = [*kept, (number, batch if isinstance(batch, torch.Tensor) else batch.tensor())][-held - 1 :]
        assert all(bool((tensor == n).all()) for n, tensor in kept)
    assert number == 59
    if held < 60:
        assert ways.count("BufferHandle") > 40  # the places were used anew
    else:
        assert ways.count("BufferHandle") == 12 and ways.count("Tensor") == 48


def test_training_batches_are_the_same_in_places_anew_and_beyond_them(sources):
    made = data(sources, batch_size=2, steps=40, image_sizes=(48, 64))
    plain = list(made.loader(first=0))
    passing = 0
    for mine, other in zip(plain, made.loader(first=0, workers=2), strict=True):
        assert mine["pixels"].equal(other["pixels"]) and mine["names"] == other["names"]
        passing += 1
    assert passing == 40
    held = list(made.loader(first=0, workers=2))  # more than there are places
    assert all(a["pixels"].equal(b["pixels"]) for a, b in zip(plain, held, strict=True))


def test_page_locked_batches_leave_their_places_at_once(as_worker, monkeypatch):
    """As the loader's thread does it; without an accelerator torch refuses to lock pages, so the
    copy is a plain one here."""
    monkeypatch.setattr(torch.Tensor, "pin_memory", torch.Tensor.clone)
    buffers = SharedBuffers(workers=2, per_worker=1, size=1000)
    handle = buffers.acquire(SHAPE)
    handle.array()[:] = 5
    locked = pin_memory({"pixels": handle, "names": ["a"]})
    assert buffers.acquire(SHAPE) == handle
    handle.array()[:] = 6
    assert bool((locked["pixels"] == 5).all()) and locked["names"] == ["a"]


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="no such list on this system")
def test_files_do_not_grow_in_number(sources):
    made = data(sources, batch_size=2, steps=30)
    loader = made.loader(first=0, workers=1)
    next(loader)
    before = len(os.listdir("/proc/self/fd"))
    held = [next(loader) for _ in range(6)]
    assert len(os.listdir("/proc/self/fd")) == before and len(held) == 6
