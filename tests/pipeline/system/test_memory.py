"""Memory that may still be allocated, read from files as Linux has them."""

from __future__ import annotations

import pytest

from pipeline.system.memory import available_memory


def system(root, meminfo=None, cgroup="", **files):
    (root / "proc/self").mkdir(parents=True)
    if meminfo is not None:
        (root / "proc/meminfo").write_text(f"MemTotal: 99 kB\nMemAvailable:    {meminfo} kB\n")
    (root / "proc/self/cgroup").write_text(cgroup)
    for path, text in files.items():
        file = root / "sys/fs/cgroup" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return available_memory(root)


def test_it_is_the_machines_or_a_groups_or_that_of_a_group_above(tmp_path):
    stat = "anon 1\ninactive_file 5\n"
    v2 = {"memory.max": "max\n", "memory.current": "1\n"}
    assert system(tmp_path / "none") is None
    assert system(tmp_path / "a", 100) == 100 * 1024
    assert system(tmp_path / "b", 100, "0::/x/y\n", **v2) == 100 * 1024  # no limit
    limited = {"x/memory.max": "1000", "x/memory.current": "700", "x/memory.stat": stat}
    assert system(tmp_path / "c", 100, "0::/x/y\n", **v2, **limited) == 305
    old = {"memory/z/memory.limit_in_bytes": "900", "memory/z/memory.usage_in_bytes": "950"}
    assert system(tmp_path / "d", 100, "4:cpu:/q\n3:memory:/z\n0::/\n", **old) == 0


def test_this_machines_is_a_plausible_number():
    assert 10 << 20 < available_memory() < 1 << 50


@pytest.mark.parametrize("line", ["", "0::/nowhere\n"])
def test_groups_that_are_not_mounted_are_passed_over(tmp_path, line):
    assert system(tmp_path, 7, line) == 7 * 1024
