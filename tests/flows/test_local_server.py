"""Children of ``self-train up``: started again when they die, but not for ever."""

from __future__ import annotations

import pytest

from flows import local_server
from pipeline.errors import RunError


def test_a_child_may_die_early_twice_in_a_row(monkeypatch, tmp_path):
    """Each number is how long the child lived: only lives under a minute count, and a longer one ends the row."""
    now = 0.0
    monkeypatch.setattr(local_server.time, "monotonic", lambda: now)
    monkeypatch.setattr(local_server.subprocess, "Popen", lambda *_, **__: None)
    child = local_server._Service("board", ["board"], {}, tmp_path)
    child.start()
    for lived in (59, 59, 61, 10, 59, 3600, 1, 1):
        now += lived
        child.start()
    now += 59
    with pytest.raises(RunError, match="the board died three times within a minute of its start"):
        child.start()
    child._output.close()
