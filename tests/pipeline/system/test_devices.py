"""What a process may compute on."""

import os
import subprocess
import sys

import pytest

from pipeline.system.devices import cores, is_device_lost


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
