"""Child processes of the flow: their reports, their failures, their end."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Timer
from types import SimpleNamespace

import pytest
from prefect.states import Failed

from flows import jobs
from flows.subprocess_jobs import ENDING, ChildJob, EndedError, end_children, run_child
from pipeline.errors import InputError, RunError, StageError
from pipeline.runs.summary import stage_times
from tests.flows.tiny import ROOT, wait_until


def job(tmp_path: Path, code: str, name: str = "a") -> ChildJob:
    return ChildJob(name=name, stage="s", command=(sys.executable, "-c", textwrap.dedent(code)), logs=tmp_path / "logs")


def test_a_child_leaves_its_words_its_time_and_its_memory(tmp_path):
    done = job(tmp_path, "import time; x = bytearray(200 << 20); print('hello'); time.sleep(0.3)")
    assert run_child(done) is None
    assert "hello" in (tmp_path / "logs" / "a.log").read_text()
    run_child(job(tmp_path, "import time; time.sleep(0.2)", name="b"))
    times = stage_times(tmp_path / "logs")["s"]
    assert 200 < times["peak_mib"] < 400 and times["seconds"] > 0
    rows = [json.loads(line) for line in (tmp_path / "logs" / "times.jsonl").read_text().splitlines()]
    assert rows[1]["peak_mib"] < 150  # the second child's own, not the first one's


def test_a_childs_report_is_read_and_a_stale_one_is_not(tmp_path):
    writing = job(tmp_path, f"open({str(tmp_path / 'logs' / 'a.report.json')!r}, 'w').write('{{\"stage\": \"s\"}}')")
    assert run_child(writing) == {"stage": "s"}
    assert run_child(job(tmp_path, "pass")) is None


@pytest.mark.parametrize(("code", "kind"), [(2, InputError), (1, RunError)])
def test_a_failing_child_is_told_with_its_last_words(tmp_path, code, kind):
    with pytest.raises(kind, match=rf"a ended with {code}; last lines of .*a\.log:\nwhat was wrong"):
        run_child(job(tmp_path, f"import sys; print('what was wrong'); sys.exit({code})"))


def test_a_retry_waits_for_its_delay_but_not_in_a_run_that_is_ended(monkeypatch):
    """Prefect's own delay held an interrupted run for up to 15 seconds."""

    def retried(count: int, error: Exception) -> tuple[bool, float]:
        began = time.monotonic()
        again = asyncio.run(jobs._may_pass(None, SimpleNamespace(run_count=count), Failed(data=error)))
        return again, time.monotonic() - began

    monkeypatch.setattr(jobs, "RETRY_DELAYS", (0.3, 30.0))
    again, seconds = retried(1, RunError("x"))
    assert again and seconds >= 0.3
    for error in (InputError("x"), StageError("x")):
        again, seconds = retried(2, error)
        assert not again and seconds < 5
    Timer(0.3, ENDING.set).start()
    try:
        again, seconds = retried(2, RunError("x"))
    finally:
        ENDING.clear()
    assert not again and seconds < 5


def test_a_child_ends_with_its_killed_starter(tmp_path):
    pid_file = tmp_path / "pid"
    child = (
        "import time, os; from pipeline.system.parent_watch import exit_with_parent; exit_with_parent(); "
        f"open({str(pid_file)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    )
    starter = f"""
        import sys
        from pathlib import Path
        from flows.subprocess_jobs import ChildJob, run_child
        command = (sys.executable, "-c", {child!r})
        run_child(ChildJob(name="a", stage="s", command=command, logs=Path({str(tmp_path)!r})))
    """
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(starter)], cwd=ROOT)
    try:
        wait_until(lambda: pid_file.is_file() and pid_file.read_text(), 60, "the child's start", process)
        pid = int(pid_file.read_text())
        os.kill(pid, 0)
    finally:
        process.kill()
        process.wait()

    def gone() -> bool:
        try:
            return Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[0] == "Z"
        except FileNotFoundError:
            return True

    wait_until(gone, 20, "the orphan's end")


@pytest.mark.slow
def test_children_are_ended_together_and_none_is_started_until_anew(tmp_path):
    deaf = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('here', flush=True); time.sleep(600)"
    )
    jobs = [
        job(tmp_path, deaf, "deaf"),
        job(tmp_path, "import time; print('here', flush=True); time.sleep(600)", "quiet"),
    ]

    def working() -> bool:
        logs = [tmp_path / "logs" / f"{j.name}.log" for j in jobs]
        return all(log.is_file() and "\nhere" in log.read_text() for log in logs)

    with ThreadPoolExecutor(2) as threads:
        ends = [threads.submit(run_child, j) for j in jobs]
        try:
            wait_until(working, 60, "the children's start")
            began = time.monotonic()
            end_children()
            for end in ends:
                with pytest.raises(EndedError, match="ended, as the run was interrupted"):
                    end.result(20)
            assert 9 < time.monotonic() - began < 20  # the deaf one had its ten seconds
            with pytest.raises(EndedError):
                run_child(job(tmp_path, "pass"))
        finally:
            ENDING.clear()
    assert run_child(job(tmp_path, "pass")) is None


def test_a_program_that_knows_no_lifeline_ends_with_its_starter():
    command = [sys.executable, "-m", "pipeline.system.parent_watch", "http.server", "0", "--bind", "127.0.0.1"]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    ) as server:
        assert server.stdin is not None and server.stdout is not None
        assert "Serving HTTP on 127.0.0.1" in server.stdout.readline()
        assert server.poll() is None
        server.stdin.close()
        assert server.wait(20) == -signal.SIGTERM


def test_a_line_that_was_cut_off_costs_no_run_its_summary(tmp_path, caplog):
    row = {"name": "s-0", "stage": "s", "seconds": 2.0, "peak_mib": 3.0}
    (tmp_path / "times.jsonl").write_text(
        json.dumps(row) + '\n{"name": "s-1", "sta\n[]\n' + json.dumps(row | {"name": "s-2"})
    )
    assert stage_times(tmp_path) == {"s": {"seconds": 4.0, "peak_mib": 3.0}}
    assert "not a record of times" in caplog.text
