"""One run at a time in a folder: who is there is named, the dead are not waited for, and a round is
a part of its run."""

from __future__ import annotations

import pytest

from pipeline.errors import InputError
from pipeline.execution.folder_lock import folder_lock
from tests.fixtures.alone import process_in


@pytest.fixture
def holder(tmp_path):
    """Another process that works in the folder until it is told to end."""
    with process_in(tmp_path / "run") as process:
        yield process


def test_a_living_run_is_named_and_not_joined(holder, tmp_path):
    said: list[str] = []
    words = rf"run: another run works there \(process {holder.pid} on \S+\)"
    with pytest.raises(InputError, match=words + "; wait for its end"), folder_lock(tmp_path / "run", said.append, 1.5):
        pass
    assert len(said) == 1 and said[0].endswith("waiting up to 2 s for its end")
    assert (tmp_path / "run" / ".run.claim").is_file()


def test_a_run_that_ends_meanwhile_is_followed(holder, tmp_path):
    def leave(_: str) -> None:
        holder.stdin.write("\n")
        holder.stdin.flush()

    with folder_lock(tmp_path / "run", leave, 30):
        pass
    assert holder.wait(10) == 0
    assert not list((tmp_path / "run").iterdir())


def test_a_killed_run_is_not_waited_for(holder, tmp_path):
    holder.kill()
    holder.wait()
    with folder_lock(tmp_path / "run", pytest.fail, 0):
        pass


def test_a_round_is_a_part_of_its_run(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "run")
    with folder_lock(tmp_path / "run", pytest.fail, 0):
        with folder_lock(tmp_path / "link", pytest.fail, 0):
            pass
        assert (tmp_path / "run" / ".run.claim").is_file()  # still the run's
    assert not (tmp_path / "run" / ".run.claim").exists()
