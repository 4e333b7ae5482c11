"""A stage's shards shared by workers, in this process and in others: each once, failures
recorded, the rest projected."""

from __future__ import annotations

import errno
import os
import pickle
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from threading import Barrier, Thread

import pytest

from pipeline.errors import InputError, RunError, StageError
from pipeline.execution.claims import Claims
from pipeline.execution.options import LabellingOptions, ShardOptions
from pipeline.execution.progress import Silent
from pipeline.execution.reports import ShardReport, Tally
from pipeline.execution.run import run_shards, run_workers
from pipeline.execution.scheduler import ShardScheduler
from pipeline.execution.stage_failures import stage_failure
from pipeline.execution.worker import EachShard, ShardJob, WorkQueue
from pipeline.io.atomic import write_atomic
from pipeline.io.files import StoreError
from tests.fixtures.faults import read_only


@dataclass(frozen=True)
class Write:
    """Writes a shard's name into its output; ``poison`` is the one at which the process dies or the work raises."""

    out: str
    poison: str = ""
    dies: bool = False

    def __call__(self, job: ShardJob) -> ShardReport:
        if job.name == self.poison:
            if self.dies:
                os._exit(9)
            raise InputError(f"{job.path}: poisoned")
        output = write_atomic(Path(self.out) / f"{job.name}.txt", job.name)
        return job.report("write", {f"{job.name}.txt": output}, {"samples": Tally(seen=2, kept=2)})


_broken_gpus: list[str] = []


@dataclass(frozen=True)
class OnGpu:
    """Work whose GPU breaks down at the shard ``last``, and answers no other of its process after that."""

    out: str
    last: str

    def __call__(self, job: ShardJob) -> ShardReport:
        if job.name == self.last or _broken_gpus:
            import torch  # not on top: every child process of these tests imports this module

            _broken_gpus.append(job.name)
            raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
        time.sleep(0.05)
        return Write(self.out)(job)


@dataclass(frozen=True)
class Broken:
    """A worker that cannot begin."""

    def __call__(self, queue: WorkQueue) -> None:
        raise InputError("no GPU here")


def at_once(count: int, work: Callable[[], None]) -> None:
    """The work in so many threads, until all have ended."""
    threads = [Thread(target=work) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def jobs(count: int, fingerprint: str = "f") -> list[ShardJob]:
    return [ShardJob(f"crawl/{i:05d}.tar", f"{i:05d}", fingerprint) for i in range(count)]


def names(out: Path) -> list[str]:
    return sorted(p.stem for p in out.glob("*.txt"))


@pytest.mark.parametrize("workers", [1, 3])
def test_every_shard_is_made_once_and_then_skipped(tmp_path, workers):
    report = run_shards("write", jobs(20), tmp_path, Write(str(tmp_path)), options=ShardOptions(workers=workers))
    assert (report.done, report.skipped, len(names(tmp_path))) == (20, 0, 20)
    assert report.tallies["samples"].seen == 40
    again = run_shards("write", jobs(20), tmp_path, Write(str(tmp_path)), options=ShardOptions(workers=workers))
    assert (again.done, again.skipped) == (0, 20) and again.tallies == report.tallies
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_failed_shard_is_set_aside_and_tried_again_next_time(tmp_path, workers):
    report = run_shards(
        "write", jobs(6), tmp_path, Write(str(tmp_path), "00002"), options=ShardOptions(workers=workers, max_failed=1)
    )
    assert report.done == 5 and [(f.shard, f.error) for f in report.failed] == [("00002", "crawl/00002.tar: poisoned")]
    with pytest.raises(
        RunError, match=r"1 of 6 shards failed \(allowed: 0\); first: 00002: crawl/00002\.tar: poisoned"
    ):
        run_shards("write", jobs(6), tmp_path, Write(str(tmp_path), "00002"), options=ShardOptions(workers=workers))
    assert run_shards("write", jobs(6), tmp_path, Write(str(tmp_path))).done == 1


def test_a_failed_shards_result_under_other_settings_stays_and_is_told_of(tmp_path, caplog):
    run_shards("write", jobs(2, "old"), tmp_path, Write(str(tmp_path)))
    run_shards("write", jobs(2, "new"), tmp_path, Write(str(tmp_path), "00001"), options=ShardOptions(max_failed=1))
    assert (
        f"{tmp_path} still holds the previous output of shard 00001" in caplog.text and "shard 00000" not in caplog.text
    )
    caplog.clear()
    again = run_shards(
        "write", jobs(2, "old"), tmp_path, Write(str(tmp_path), "00000"), options=ShardOptions(max_failed=1)
    )
    assert again.skipped == 1 and [f.shard for f in again.failed] == ["00000"]


def test_a_worker_process_that_dies_fails_its_shard_alone(tmp_path):
    work = EachShard(Write(str(tmp_path), "00001", dies=True))
    report = run_workers("write", jobs(8), tmp_path, [work, work], options=ShardOptions(max_failed=1))
    assert report.done == 7 and [f.shard for f in report.failed] == ["00001"]
    assert "ended with code 9" in report.failed[0].error


def test_a_gpu_that_breaks_down_takes_its_process_along_and_no_other_shard(tmp_path):
    """It fails at once, and would take shard after shard before the others are ready for one."""
    work = EachShard(OnGpu(str(tmp_path), "00001"))
    report = run_workers("write", jobs(8), tmp_path, [work, work], options=ShardOptions(max_failed=1))
    assert report.done == 7 and [f.shard for f in report.failed] == ["00001"]
    assert "illegal memory access" in report.failed[0].error


def test_when_every_worker_breaks_down_the_run_says_why(tmp_path):
    with pytest.raises(RunError, match="every worker failed; first: no GPU here"):
        run_workers("write", jobs(3), tmp_path, [Broken(), Broken()])
    with pytest.raises(InputError, match="no GPU here"):
        run_workers("write", jobs(3), tmp_path, [Broken()])
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_fingerprints_are_asked_for_when_a_shards_turn_comes(tmp_path):
    asked: list[str] = []

    def fingerprint_of(job: ShardJob) -> str:
        asked.append(job.name)
        if job.name == "00001":
            raise InputError(f"{job.path}: cannot be read")
        return f"fingerprint_of {job.name}"

    def worker(queue: WorkQueue) -> None:
        job = queue.take()
        assert job is not None and job.fingerprint == "fingerprint_of 00000" and asked == ["00000"]
        queue.done(job, Write(str(tmp_path))(job))
        EachShard(Write(str(tmp_path)))(queue)

    report = run_workers(
        "write", jobs(3, ""), tmp_path, [worker], options=ShardOptions(max_failed=1), fingerprint_of=fingerprint_of
    )
    assert report.done == 2 and asked == ["00000", "00001", "00002"]
    assert report.failed[0].error == "crawl/00001.tar: cannot be read"


def test_a_pilot_makes_a_few_and_tells_what_is_left(tmp_path):
    (tmp_path / "crawl").mkdir()
    inputs = []
    for i in range(10):
        path = tmp_path / "crawl" / f"{i:05d}.tar"
        path.write_bytes(bytes(1000))
        inputs.append(ShardJob(str(path), path.stem, "f"))

    def worker(queue: WorkQueue) -> None:
        while (job := queue.take()) is not None:
            queue.advance(2, "images")
            queue.done(job, Write(str(tmp_path / "out"))(job))

    first = run_workers("write", inputs, tmp_path / "out", [worker], options=LabellingOptions(limit=2, price=3.0))
    assert first.done == 2 and names(tmp_path / "out") == ["00000", "00001"]
    rates = first.rates
    assert rates is not None and rates.shards_left == 8 and rates.samples == 4
    assert rates.hours_left == pytest.approx(4 * rates.device_seconds / 3600)
    assert any("left: 8 shards" in line and "cost" in line for line in first.lines())
    second = run_workers("write", inputs, tmp_path / "out", [worker], options=LabellingOptions(limit=3))
    assert (second.done, second.skipped) == (3, 2) and second.rates is not None and second.rates.shards_left == 5
    last = run_workers("write", inputs, tmp_path / "out", [worker])
    assert (last.done, last.skipped) == (5, 5) and last.rates is not None and last.rates.shards_left == 0


def test_an_output_that_is_gone_or_short_is_made_anew(tmp_path):
    run_shards("write", jobs(3), tmp_path, Write(str(tmp_path)))
    (tmp_path / "00000.txt").unlink()
    (tmp_path / "00001.txt").write_text("0")
    report = run_shards("write", jobs(3), tmp_path, Write(str(tmp_path)))
    assert (report.done, report.skipped) == (2, 1)
    assert (tmp_path / "00001.txt").read_text() == "00001"


def test_workers_stay_while_what_is_left_is_another_runs(tmp_path, monkeypatch):
    """One that looks at the busy shards must not make the others think that there is nothing left."""
    other, looks = Claims(tmp_path), 0
    for job in jobs(4):
        assert other.take(job.name)

    class Slow(Claims):
        """As a bucket is, and the other run gives all up after a while."""

        def take(self, name: str) -> bool:
            nonlocal looks
            looks += 1
            if looks == 12:
                other.close()
            time.sleep(0.05)
            return super().take(name)

    monkeypatch.setattr("pipeline.execution.scheduler.Claims", Slow)
    monkeypatch.setattr("pipeline.execution.scheduler.LOOK_AGAIN", 0.01)
    scheduler = ShardScheduler("write", jobs(4), tmp_path, progress=Silent())
    begun, done = Barrier(4, timeout=30), []

    def work() -> None:
        if (job := scheduler.take()) is not None:
            begun.wait()  # all four have one at the same time
            scheduler.done(job, Write(str(tmp_path))(job))
            done.append(job.name)

    at_once(4, work)
    assert len(done) == 4 and scheduler.close(devices=1, price=None, max_failed=0).done == 4


def test_a_shard_that_fails_before_it_is_claimed_keeps_the_claim_of_its_owner(tmp_path):
    other = Claims(tmp_path)
    assert other.take("00000")

    def fingerprint_of(job: ShardJob) -> str:
        raise InputError(f"{job.path}: cannot be read")

    with pytest.raises(RunError, match="cannot be read"):
        run_workers("write", jobs(1, ""), tmp_path, [EachShard(Write(str(tmp_path)))], fingerprint_of=fingerprint_of)
    assert other.holds("00000")
    other.close()


class Unheard(Silent):
    """Progress that has no room on its disk."""

    def advance(self, n: int, unit: str = "samples") -> None:
        raise OSError(28, "No space left on device")

    def shard(self, report: ShardReport, skipped: bool) -> None:
        raise OSError(28, "No space left on device")


@pytest.mark.parametrize("workers", [1, 2])
def test_progress_that_cannot_be_told_fails_no_shard(tmp_path, workers, caplog):
    for done, skipped in ((4, 0), (0, 4)):
        report = run_shards(
            "write", jobs(4), tmp_path, Write(str(tmp_path)), options=ShardOptions(workers=workers, progress=Unheard())
        )
        assert (report.done, report.skipped, report.failed) == (done, skipped, [])
    assert "write: progress not reported: OSError: [Errno 28]" in caplog.text and "still holds" not in caplog.text


@pytest.mark.parametrize("workers", [1, 2])
def test_a_claim_that_cannot_be_given_up_costs_nothing(tmp_path, workers, monkeypatch, caplog):
    def release(self: Claims, name: str) -> None:
        raise ConnectionError("the bucket is away")

    monkeypatch.setattr(Claims, "release", release)
    monkeypatch.setattr(Claims, "close", lambda self: None)
    report = run_shards(
        "write", jobs(4), tmp_path, Write(str(tmp_path), "00002"), options=ShardOptions(workers=workers, max_failed=1)
    )
    assert report.done == 3 and [(f.shard, f.error) for f in report.failed] == [("00002", "crawl/00002.tar: poisoned")]
    assert "claim of shard 00001 not released: ConnectionError" in caplog.text


def test_a_ledger_that_fails_ends_its_processes_and_says_so(tmp_path, monkeypatch):
    def done(self: ShardScheduler, job: ShardJob, report: ShardReport) -> None:
        raise MemoryError("none left")

    monkeypatch.setattr(ShardScheduler, "done", done)
    with pytest.raises(RunError, match="its scheduler failed: MemoryError: none left"):
        run_shards("write", jobs(4), tmp_path, Write(str(tmp_path)), options=ShardOptions(workers=2))


def test_a_limit_holds_for_threads_that_ask_at_the_same_time(tmp_path, monkeypatch):
    begun = Barrier(8, timeout=30)

    class Slow(Claims):
        def take(self, name: str) -> bool:
            time.sleep(0.05)
            return super().take(name)

    monkeypatch.setattr("pipeline.execution.scheduler.Claims", Slow)
    scheduler, given = ShardScheduler("write", jobs(20), tmp_path, progress=Silent(), limit=4), []

    def work() -> None:
        begun.wait()
        if (job := scheduler.take()) is not None:
            given.append(job.name)

    at_once(8, work)
    assert len(given) == 4
    scheduler.close(devices=1, price=None, max_failed=0)


def test_a_shard_of_another_run_costs_a_limit_nothing(tmp_path, monkeypatch):
    other = Claims(tmp_path)
    assert other.take("00000")
    scheduler = ShardScheduler("write", jobs(3), tmp_path, progress=Silent(), limit=2)
    assert [scheduler.offer().name, scheduler.offer().name] == ["00001", "00002"]
    other.close()
    scheduler.close(devices=1, price=None, max_failed=0)


@dataclass(frozen=True)
class FullFrom:
    """Work that finds no space left, or no access, from a shard on; each try is noted in ``tries``."""

    out: str
    tries: str
    first: str
    number: int = errno.ENOSPC
    path: str | None = None

    def __call__(self, job: ShardJob) -> ShardReport:
        (Path(self.tries) / job.name).touch()
        if job.name < self.first:
            return Write(self.out)(job)
        try:
            raise OSError(self.number, os.strerror(self.number), self.path or f"{self.out}/{job.name}.txt")
        except OSError as error:
            raise RuntimeError("a library's own words") from error


@pytest.mark.parametrize(
    ("number", "workers"),
    [
        (errno.ENOSPC, 1),
        (errno.ENOSPC, 3),
        (errno.EDQUOT, 1),
        (errno.EFBIG, 1),
        (errno.EROFS, 1),
        (errno.EACCES, 1),
        (errno.EIO, 1),
    ],
)
def test_a_failure_of_the_output_folder_ends_the_stage_at_once_and_the_rest_goes_on_later(
    tmp_path, number, workers, caplog
):
    out, tries = tmp_path / "out", tmp_path / "tries"
    tries.mkdir()
    work = FullFrom(str(out), str(tries), "00003", number)
    options = ShardOptions(workers=workers, max_failed=99)
    with pytest.raises(StageError) as error:
        run_shards("write", jobs(40), out, work, options=options)
    assert str(error.value).startswith(f"write: {out}: {os.strerror(number)}. ") and error.value.exit_code == 1
    assert "of 40 are done, and the same command does the rest" in str(error.value)
    assert len(list(tries.iterdir())) <= 3 + 2 * workers and len(caplog.records) <= 1
    done = len(names(out))
    assert done <= 3 and not [p for p in out.iterdir() if p.name.endswith(".claim")]
    assert run_shards("write", jobs(40), out, Write(str(out))).done >= 40 - done


def test_an_unreadable_input_is_its_shards_alone(tmp_path):
    out, tries = tmp_path / "out", tmp_path / "tries"
    tries.mkdir()
    work = FullFrom(str(out), str(tries), "00003", errno.EACCES, str(tmp_path / "crawl" / "x.tar"))
    report = run_shards("write", jobs(6), out, work, options=ShardOptions(max_failed=99))
    assert report.done == 3 and len(report.failed) == 3


def store_error(url: str, *, for_all: bool = False, refused: bool = True) -> StoreError:
    error = StoreError(f"{url}: access refused")
    error.url, error.for_all, error.refused = url, for_all, refused
    return error


@pytest.mark.parametrize(
    ("error", "whole_stage"),
    [
        (store_error("s3://in/a.tar"), False),
        (store_error("s3://in/a.tar", for_all=True), True),  # expired credentials
        (store_error("s3://out/labels/a.parquet"), True),
        (store_error("s3://out/labels-2/a.parquet"), False),
        (store_error("s3://out/labels/a.parquet", refused=False), False),
        (RuntimeError("SafetensorError: I/O error: No space left on device (os error 28)"), True),
        (RuntimeError("thread panicked (os error 2)"), False),
        (InputError("a.tar: no images"), False),
    ],
)
def test_which_failures_concern_all_shards(error, whole_stage):
    assert (stage_failure(error, "s3://out/labels") is not None) == whole_stage
    assert (stage_failure(pickle.loads(pickle.dumps(error)), "s3://out/labels") is not None) == whole_stage


@dataclass(frozen=True)
class Refused:
    """Work whose inputs a store refuses, all but those named."""

    out: str
    open_ones: tuple[str, ...]

    def __call__(self, job: ShardJob) -> ShardReport:
        if job.name not in self.open_ones:
            raise store_error(f"s3://in/{job.name}.tar")
        return Write(self.out)(job)


@pytest.mark.parametrize("workers", [1, 2])
def test_one_refused_input_is_its_shards_alone_and_two_in_a_row_end_the_stage(tmp_path, workers):
    every = [job.name for job in jobs(8)]
    but_one = Refused(str(tmp_path), tuple(name for name in every if name != "00003"))
    report = run_shards("write", jobs(8), tmp_path, but_one, options=ShardOptions(workers=workers, max_failed=9))
    assert report.done == 7 and len(report.failed) == 1
    with pytest.raises(StageError, match=r"s3://in/0000\d\.tar: access refused\. It concerns all shards"):
        run_shards(
            "write", jobs(8, "g"), tmp_path, Refused(str(tmp_path), ()), ShardOptions(workers=workers, max_failed=9)
        )


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a disk")
def test_a_disk_that_is_read_only_is_named_before_anything_starts_unless_all_is_done(tmp_path):
    run_shards("write", jobs(3), tmp_path / "disk", Write(str(tmp_path / "disk")))
    with read_only(tmp_path / "disk") as disk:
        assert run_shards("write", jobs(3), disk, Write(str(disk))).skipped == 3
        with pytest.raises(StageError, match=f"write: {disk}: Read-only file system; nothing was started"):
            run_shards("write", jobs(4), disk, Broken())
