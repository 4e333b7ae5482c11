"""Memory that this process may still take: the machine's, or less in a container."""

from __future__ import annotations

from pathlib import Path


def available_memory(root: Path = Path("/")) -> int | None:
    """Bytes that can be allocated without the kernel killing a process; None if not known.

    The least of MemAvailable and what the memory limits of this process's control group and those
    above it leave, of version 1 or 2. root: of the file systems proc and sys.
    """
    found = []
    for line in _read(root / "proc/meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            found.append(int(line.split()[1]) * 1024)
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory") and "memory" not in controllers.split(","):
            continue
        base = root / "sys/fs/cgroup" / ("memory" if controllers else "")
        names = (
            ("memory.max", "memory.current") if not controllers else ("memory.limit_in_bytes", "memory.usage_in_bytes")
        )
        group = Path(path.lstrip("/"))
        for folder in dict.fromkeys([group, *group.parents, Path()]):
            limit, used = (_read(base / folder / name).strip() for name in names)
            if limit.isdigit() and used.isdigit():
                cached = dict(line.split() for line in _read(base / folder / "memory.stat").splitlines())
                reclaimable = int(cached.get("inactive_file" if not controllers else "total_inactive_file", 0))
                found.append(max(0, int(limit) - int(used) + reclaimable))
    return min(found, default=None)


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
