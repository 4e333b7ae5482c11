"""A worker of the loader leaves with all its work done, whatever its parent has loaded."""

import subprocess
import sys
import textwrap

PARENT = """
    import os, threading
    from torch.utils.data import DataLoader
    from pipeline.training.dataloader_workers import prepare_worker

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
    batches = list(DataLoader(Numbers(), batch_size=2, num_workers=2, worker_init_fn=prepare))
    print(len(batches), "batches")
"""


def load(*, prepared: bool, wrong: int = 0) -> subprocess.CompletedProcess[str]:
    script = f"PREPARED, WRONG = {prepared}, {wrong}\n" + textwrap.dedent(PARENT)
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300)


def test_a_hook_of_the_parent_does_not_break_a_worker_that_is_done():
    done = load(prepared=True)
    assert (done.returncode, done.stdout) == (0, "4 batches\n"), done.stderr
    assert "exited unexpectedly" in load(prepared=False).stderr  # what it would be


def test_an_error_in_a_worker_is_still_told():
    failed = load(prepared=True, wrong=5)
    assert failed.returncode == 1 and "ZeroDivisionError" in failed.stderr
