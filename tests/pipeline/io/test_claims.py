"""Claims: one owner at a time, taken over from the dead and the silent, never from the living."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.io import claims
from pipeline.io.claims import Claims, clear_claims

HOLD = """
import sys, time
from pipeline.io.claims import Claims
print(Claims(sys.argv[1]).take("00000"), flush=True)
time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that has claimed shard 00000."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline().strip() == "True"
    yield process
    process.kill()
    process.wait()


def test_a_living_owner_keeps_its_claim(holder, tmp_path):
    mine = Claims(tmp_path)
    assert not mine.take("00000") and mine.take("00001")
    assert clear_claims(tmp_path) == 0
    mine.close()
    assert [p.name for p in tmp_path.glob(".*")] == [".00000.claim"]


def test_a_dead_owner_loses_it_at_once(holder, tmp_path):
    holder.kill()  # not waited for: what is left of it still has a pid
    deadline = time.monotonic() + 10
    mine = Claims(tmp_path)
    while not mine.take("00000") and time.monotonic() < deadline:
        time.sleep(0.05)
    assert json.loads((tmp_path / ".00000.claim").read_text())["pid"] != holder.pid
    mine.close()
    assert not list(tmp_path.glob(".*"))


def test_what_a_killed_run_left_is_cleared(holder, tmp_path):
    holder.kill()
    holder.wait()
    assert clear_claims(tmp_path) == 1 and not list(tmp_path.glob(".*"))


def test_another_machines_claim_is_void_when_nobody_renews_it(tmp_path, monkeypatch):
    path = tmp_path / ".00000.claim"
    theirs = {"host": "elsewhere", "pid": 1, "started": "1", "beat": 0}
    path.write_text(json.dumps(theirs))
    monkeypatch.setattr(claims, "STILL_SECONDS", 0.3)
    mine = Claims(tmp_path)
    assert not mine.take("00000")
    time.sleep(0.2)
    path.write_text(json.dumps(theirs | {"beat": 1}))  # renewed: the wait begins anew
    assert not mine.take("00000")
    time.sleep(0.2)
    assert not mine.take("00000")
    time.sleep(0.2)
    assert mine.take("00000")
    mine.close()


def test_claims_are_renewed_while_they_are_held(tmp_path, monkeypatch):
    monkeypatch.setattr(claims, "RENEW_SECONDS", 0.05)
    mine = Claims(tmp_path)
    assert mine.take("00000")
    path, deadline = Path(tmp_path / ".00000.claim"), time.monotonic() + 10
    while json.loads(path.read_text())["beat"] < 3 and time.monotonic() < deadline:
        time.sleep(0.02)
    assert json.loads(path.read_text())["beat"] >= 3
    mine.release("00000")
    assert not path.exists()
    mine.close()


def test_a_file_that_is_no_claim_does_not_block_for_ever(tmp_path, monkeypatch):
    (tmp_path / ".00000.claim").write_text("half a cla")
    monkeypatch.setattr(claims, "STILL_SECONDS", 0.1)
    mine = Claims(tmp_path)
    assert clear_claims(tmp_path) == 0 and not mine.take("00000")
    time.sleep(0.15)
    assert mine.take("00000")
    mine.close()
