"""Claims: one owner at a time, taken over from the dead and the silent, never from the living."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.execution import claims
from pipeline.execution.claims import Claims, clear_claims, flocked
from pipeline.system.host_lock import host_lock
from pipeline.system.process_identity import host_identity

HOLD = """
import sys, time
from pipeline.execution.claims import Claims
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


def test_a_living_owner_of_this_machine_may_stand_still(holder, tmp_path, monkeypatch):
    monkeypatch.setattr(claims, "STILL_SECONDS", 0.1)
    os.kill(holder.pid, signal.SIGSTOP)
    mine = Claims(tmp_path)
    assert not mine.take("00000")
    time.sleep(0.2)
    assert not mine.take("00000")
    mine.close()


def elsewhere(folder: Path, name: str) -> None:
    """Make a claim look like another machine's."""
    path = folder / f".{name}.claim"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"host": "elsewhere"}))


def test_an_owner_that_lost_its_claim_notices_and_leaves_the_new_one_alone(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(claims, "STILL_SECONDS", 0.1)
    monkeypatch.setattr(claims, "RENEW_SECONDS", 0.5)
    slow, next_one, third = Claims(tmp_path), Claims(tmp_path), Claims(tmp_path)
    assert slow.take("00000") and slow.holds("00000")
    elsewhere(tmp_path, "00000")
    assert not next_one.take("00000")
    time.sleep(0.15)
    assert next_one.take("00000") and next_one.holds("00000")
    assert not slow.holds("00000")
    deadline = time.monotonic() + 10
    while "this claim was not renewed in time" not in caplog.text and time.monotonic() < deadline:
        time.sleep(0.02)
    slow.release("00000")
    slow.close()
    assert next_one.holds("00000") and not third.take("00000")
    next_one.close()
    assert not list(tmp_path.glob(".*"))


def test_a_claim_that_somebody_removed_is_made_again(tmp_path, monkeypatch):
    monkeypatch.setattr(claims, "RENEW_SECONDS", 0.05)
    mine = Claims(tmp_path)
    assert mine.take("00000")
    (tmp_path / ".00000.claim").unlink()
    deadline = time.monotonic() + 10
    while not mine.holds("00000") and time.monotonic() < deadline:
        time.sleep(0.02)
    assert mine.holds("00000")
    mine.close()


def test_what_was_not_claimed_is_not_given_up(holder, tmp_path):
    mine = Claims(tmp_path)
    mine.release("00000")
    mine.close()
    assert not Claims(tmp_path).take("00000")


RACE = """
import sys, time
from pathlib import Path
from pipeline.execution.claims import Claims
folder, rounds = Path(sys.argv[1]), int(sys.argv[2])
for n in range(rounds):
    claims = Claims(folder / str(n))
    print(n, flush=True)
    sys.stdin.readline()  # all begin at once
    if claims.take("run"):
        (folder / str(n) / f"took-{sys.argv[3]}").touch()
    print("looked", flush=True)
    sys.stdin.readline()
    if claims.holds("run"):
        (folder / str(n) / f"has-{sys.argv[3]}").touch()
    claims._ended.set()
"""


@pytest.mark.parametrize("guarded", [True, False], ids=["locks", "no locks, as on some network disks"])
def test_of_several_that_wait_for_a_dead_owners_claim_one_gets_it(tmp_path, guarded):
    rounds, dead = 40, {"host": host_identity(), "pid": 2**22 + 1, "started": "1", "beat": 0}
    for n in range(rounds):
        (tmp_path / str(n)).mkdir()
        (tmp_path / str(n) / ".run.claim").write_text(json.dumps(dead))
    script = RACE if guarded else "import fcntl\ndef refused(*_): raise OSError\nfcntl.flock = refused\n" + RACE
    command = [sys.executable, "-c", script, str(tmp_path), str(rounds)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    racers = [subprocess.Popen([*command, str(i)], text=True, bufsize=1, **pipes) for i in range(3)]
    for _ in range(rounds):
        for _ in ("all are there", "all have looked"):
            for racer in racers:
                racer.stdout.readline()
            for racer in racers:
                racer.stdin.write("\n")
    assert [racer.wait(60) for racer in racers] == [0, 0, 0]
    took, has = ([len(list((tmp_path / str(n)).glob(f"{did}-*"))) for n in range(rounds)] for did in ("took", "has"))
    assert set(has) == {1} and (set(took) == {1} or not guarded), (took, has)


SHARED = """
import sys, time
from pathlib import Path
from pipeline.execution.claims import Claims
from pipeline.io.atomic import atomic_file
from pipeline.io.temporaries import clear_temporaries
folder, end, taken = Path(sys.argv[1]), time.monotonic() + 4, 0
while time.monotonic() < end:
    clear_temporaries(folder)
    claims = Claims(folder)
    taken += claims.take("00000")
    with atomic_file(folder / "out.tar") as file:
        file.write(bytes(1000))
    claims.close()
print(taken)
"""


@pytest.mark.skipif(
    subprocess.run(["unshare", "--pid", "--fork", "--mount-proc", "true"], capture_output=True, check=False).returncode
    != 0
    if shutil.which("unshare")
    else True,
    reason="process namespaces cannot be made here",
)
def test_containers_whose_processes_have_one_number_do_not_disturb_each_other(tmp_path):
    """As pods do: each is process 1 of its own."""
    command = ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-c", SHARED, str(tmp_path)]
    pods = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    ended = [pod.communicate(timeout=120) for pod in pods]
    assert [pod.returncode for pod in pods] == [0, 0, 0], ended
    assert sum(int(out) for out, _ in ended) > 10
    assert [p.name for p in tmp_path.iterdir()] == ["out.tar"]


def test_a_claim_whose_making_was_not_answered_is_ours(tmp_path, monkeypatch):
    """A store may make it, fail to say so, and say on the second try that it is there."""
    make = claims.create_exclusively
    monkeypatch.setattr(claims, "create_exclusively", lambda path, data: make(path, data) and False)
    mine, other = Claims(tmp_path), Claims(tmp_path)
    assert mine.take("00000") and mine.holds("00000") and not other.take("00000")
    assert not mine.take("00000")  # it is handed out once
    mine.close()
    assert not list(tmp_path.glob(".*"))


def test_an_owner_that_the_system_hides_is_watched_before_it_loses_its_claim(holder, tmp_path, monkeypatch):
    """As another user's processes are hidden under hidepid."""
    real = claims.process_start
    monkeypatch.setattr(claims, "process_start", lambda pid: "" if pid == holder.pid else real(pid))
    monkeypatch.setattr(claims, "STILL_SECONDS", 0.2)
    mine = Claims(tmp_path)
    assert not mine.take("00000") and clear_claims(tmp_path) == 0
    time.sleep(0.3)
    assert mine.take("00000")
    mine.close()


@pytest.mark.parametrize("held", [flocked, lambda folder: host_lock("held")])
def test_a_lock_is_free_again_although_a_process_was_forked_under_it(tmp_path, monkeypatch, held):
    """As a loader's worker may be, while another thread renews a claim."""
    monkeypatch.setenv("GLIP_SELF_TRAIN_LOCKS", str(tmp_path / "locks"))
    with held(tmp_path):
        fork = multiprocessing.get_context("fork").Process(target=time.sleep, args=(600,))
        fork.start()
    code = (
        "import fcntl, os, sys; handle = os.open(sys.argv[1], os.O_RDONLY);"
        "fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)"
    )
    path = next((tmp_path / "locks").glob("*"), tmp_path) if (tmp_path / "locks").exists() else tmp_path
    try:
        subprocess.run([sys.executable, "-c", code, str(path)], check=True, timeout=60)
    finally:
        fork.kill()
        fork.join()
