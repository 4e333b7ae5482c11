"""Checkpoints: at every moment of their making, replacing and pruning one is whole."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from pipeline.training import checkpoints
from pipeline.training.checkpoints import (
    activate_run,
    checkpoints_of_others,
    latest_checkpoint,
    prune,
    read_state,
    recover,
    remove_all,
    write_checkpoint,
)


def write(folder: Path, text: str, mark: str = "mark", step: int = 1) -> None:
    def fill(inside: Path) -> None:
        (inside / "deep").mkdir()
        (inside / "deep" / "a.txt").write_text(text)
        (inside / "b.txt").write_text("b" * 1000)

    write_checkpoint(folder, step, mark, fill)


def content(folder: Path) -> str:
    assert read_state(folder) is not None
    return (folder / "deep" / "a.txt").read_text()


class Died(Exception):
    pass


def test_a_process_that_dies_while_replacing_leaves_the_old_or_the_new_one(tmp_path, monkeypatch):
    """Dies before every change that the writer makes to the folders' names, once each."""
    seen = set()
    for death in range(20):
        out = tmp_path / str(death)
        out.mkdir()
        write(out / "final", "old")
        with monkeypatch.context() as patch:
            left = [death]
            for module, name in ((os, "rename"), (shutil, "rmtree")):

                def mortal(*arguments, _real=getattr(module, name), _left=left, **options):
                    if _left[0] == 0:
                        raise Died
                    _left[0] -= 1
                    return _real(*arguments, **options)

                patch.setattr(module, name, mortal)
            try:
                write(out / "final", "new")
                done = True
            except Died:
                done = False
        recover(out)
        seen.add(content(out / "final"))
        assert sorted(p.name for p in out.iterdir()) == ["final"]
        if done:
            assert content(out / "final") == "new"
            break
    else:
        raise AssertionError("the writer never got through")
    assert seen == {"old", "new"} and death >= 3


def test_a_half_written_folder_goes_and_a_whole_one_gets_its_name(tmp_path):
    write(tmp_path / "step-00000002", "two", step=2)
    os.rename(tmp_path / "step-00000002", tmp_path / "step-00000002.tmp")
    (tmp_path / "step-00000004.tmp").mkdir()
    (tmp_path / "step-00000004.tmp" / "b.txt").write_text("half")
    recover(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000002"]
    assert latest_checkpoint(tmp_path, "mark") == (tmp_path / "step-00000002", 2)


def test_pruning_keeps_the_newest_of_this_run_and_all_of_another(tmp_path):
    for step, mark in ((1, "mark"), (2, "mark"), (3, "mark"), (900, "other data")):
        write(tmp_path / f"step-{step:08d}", str(step), mark, step)
    prune(tmp_path, 2, "mark", 3)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000002", "step-00000003", "step-00000900"]
    assert latest_checkpoint(tmp_path, "mark") == (tmp_path / "step-00000003", 3)


def test_damaged_checkpoints_do_not_count_among_those_that_are_kept(tmp_path):
    for step in (10, 20, 30):
        write(tmp_path / f"step-{step:08d}", str(step), step=step)
    for step in (20, 30):
        (tmp_path / f"step-{step:08d}" / "b.txt").unlink()
    assert latest_checkpoint(tmp_path, "mark") == (tmp_path / "step-00000010", 10)  # from where the run goes on
    for step in (12, 14):
        write(tmp_path / f"step-{step:08d}", str(step), step=step)
        prune(tmp_path, 1, "mark", step)
        assert latest_checkpoint(tmp_path, "mark") == (tmp_path / f"step-{step:08d}", step)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000014", "step-00000020", "step-00000030"]


def test_one_run_at_a_time_has_the_names_and_the_others_step_aside(tmp_path):
    write(tmp_path / "step-00000002", "first", "a" * 64, 2)
    activate_run(tmp_path, "b" * 64)
    aside = f"aside-{'a' * 12}-step-00000002"
    assert [p.name for p in tmp_path.iterdir()] == [aside]
    write(tmp_path / "step-00000002", "second", "b" * 64, 2)
    assert [(f.name, s.step) for f, s in checkpoints_of_others(tmp_path, "b" * 64)] == [(aside, 2)]
    activate_run(tmp_path, "a" * 64)
    assert content(tmp_path / "step-00000002") == "first"
    assert latest_checkpoint(tmp_path, "b" * 64) is None
    assert latest_checkpoint(tmp_path, "b" * 64, aside=True) is not None
    remove_all(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("size", [1, 8 << 20])
def test_damage_that_keeps_size_and_time_is_seen(tmp_path, size):
    def fill(folder: Path) -> None:
        (folder / "weights").write_bytes(b"w" * size)

    write_checkpoint(tmp_path / "step-00000001", 1, "mark", fill)
    file = tmp_path / "step-00000001" / "weights"
    assert read_state(file.parent) is not None
    stat = file.stat()
    with open(file, "r+b") as opened:
        opened.seek(size // 2)
        opened.write(b"x")
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert read_state(file.parent) is None


def test_a_filling_that_fails_leaves_what_was_there(tmp_path):
    write(tmp_path / "final", "old")

    def fill(folder: Path) -> None:
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space"):
        write_checkpoint(tmp_path / "final", 2, "mark", fill)
    assert content(tmp_path / "final") == "old"
    assert checkpoints.STATE in {p.name for p in (tmp_path / "final").iterdir()}
