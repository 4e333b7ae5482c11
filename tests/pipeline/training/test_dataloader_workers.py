"""A worker of the loader leaves with all its work done, whatever its parent has loaded."""

import subprocess
import sys
import textwrap

import pytest

PARENT = """
    import os, threading
    from torch.utils.data import DataLoader
    from pipeline.training.dataset import prepare_worker

    me = os.getpid()

    def hook():
        assert os.getpid() == me, "ends threads that a fork does not have"

    threading._register_atexit(hook)  # as Prefect's client does once a flow has logged

    class Numbers:
        def __len__(self):
            return 8

        def __getitem__(self, number):
            return 1 // (WRONG - number) if WRONG else number

    prepare = (lambda _: prepare_worker()) if PREPARED else None
    batches = iter(DataLoader(Numbers(), batch_size=2, num_workers=2, worker_init_fn=prepare))
    print(sum(1 for _ in batches), "batches, exit codes", *sorted({worker.exitcode for worker in batches._workers}))
"""


def load(*, prepared: bool, wrong: int = 0) -> subprocess.CompletedProcess[str]:
    script = f"PREPARED, WRONG = {prepared}, {wrong}\n" + textwrap.dedent(PARENT)
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_a_hook_of_the_parent_does_not_break_a_worker_that_is_done():
    done = load(prepared=True)
    assert (done.returncode, done.stdout) == (0, "4 batches, exit codes 0\n"), done.stderr
    otherwise = load(prepared=False)  # the loader may notice in time, or when all batches are there
    assert "exited unexpectedly" in otherwise.stderr or otherwise.stdout == "4 batches, exit codes 1\n"


def test_an_error_in_a_worker_is_still_told():
    failed = load(prepared=True, wrong=5)
    assert failed.returncode == 1 and "ZeroDivisionError" in failed.stderr
