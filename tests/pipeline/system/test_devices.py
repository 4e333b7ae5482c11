"""What a process may compute on."""

import os
import subprocess
import sys

import pytest
import torch

from pipeline.system.devices import cores, is_device_lost, resolved_precision


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system cannot say which cores a process has")
def test_cores_are_those_that_a_scheduler_left_us():
    ask = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); "
        "from pipeline.system.devices import cores; print(cores())"
    )
    said = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, check=True).stdout
    assert said == "1\n" and cores() == len(os.sched_getaffinity(0))


def test_a_gpu_is_gone_but_not_for_want_of_memory():
    import torch

    assert is_device_lost(torch.AcceleratorError("CUDA error: an illegal memory access was encountered"))
    assert not is_device_lost(torch.OutOfMemoryError("CUDA out of memory")) and not is_device_lost(
        RuntimeError("other")
    )


@pytest.mark.parametrize(("native", "found"), [(True, "bf16"), (False, "float32")])
def test_a_precision_that_is_not_given_is_the_devices(native, found, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: native)
    assert resolved_precision("auto", "cuda:1") == found
    assert resolved_precision("auto", "cpu") == "float32"
    assert resolved_precision("float32", "cuda") == "float32" and resolved_precision("bf16", "cpu") == "bf16"
