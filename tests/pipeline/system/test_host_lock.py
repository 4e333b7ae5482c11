"""Locks of a machine: one holder at a time, and none that a dead one keeps."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.errors import InputError
from pipeline.system.host_lock import LOCKS, host_lock


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv(LOCKS, str(tmp_path / "locks"))
    return tmp_path / "locks"


def test_one_holds_it_at_a_time_and_then_another():
    with host_lock("a") as mine:
        assert mine
        with host_lock("a") as theirs, host_lock("b/c") as other:
            assert not theirs and other
    with host_lock("a") as mine:
        assert mine


def test_a_killed_process_gives_it_back():
    code = (
        "import time\nfrom pipeline.system.host_lock import host_lock\n"
        "with host_lock('a') as mine: print(mine, flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "True\n"
        with host_lock("a") as mine:
            assert not mine
        holder.kill()
        holder.wait()
    with host_lock("a") as mine:
        assert mine


def test_other_users_of_the_machine_can_open_it(folder):
    before = os.umask(0o077)
    try:
        with host_lock("a"):
            pass
    finally:
        os.umask(before)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o1777
    assert stat.S_IMODE((folder / "a.lock").stat().st_mode) == 0o644


def test_a_folder_that_cannot_be_used_is_named(folder):
    folder.write_text("in the way")
    with (
        pytest.raises(InputError, match=r"locks/a\.lock: .*GLIP_SELF_TRAIN_LOCKS may name another folder"),
        host_lock("a"),
    ):
        pass
