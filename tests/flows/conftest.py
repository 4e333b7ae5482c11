"""What several tests of the flow share: a server, and a whole run on it that they only look at."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.flows.tiny import tiny_config, wait_until
from tests.flows.up import Up


@pytest.fixture(scope="session")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """``self-train up``: a server on loopback, every flow deployed, and a worker."""
    started = Up(tmp_path_factory.mktemp("up"))
    try:
        started.wait()
        yield started
    finally:
        started.stop()


@pytest.fixture(scope="session")
def deployed_run(up: Up) -> str:
    """The id of a tiny run that was asked of the server and that the worker carried out, in the folder ``whole``.

    In chunks, two at a time; runs that are compared with it do a stage's shards in one piece.
    """
    run = up.start(up.runs / "whole", tiny_config("resources.parallel=2", "resources.chunk_shards=3"))
    wait_until(lambda: up.ended(run), 600, "the run's end", up.process)
    assert up.state(run)[0] == "COMPLETED", (up.logs / "worker.log").read_text()[-3000:]
    return run


@pytest.fixture(scope="session")
def deployed(up: Up, deployed_run: str) -> Path:
    """The folder of that run; tests that change it leave its outputs as they were."""
    return up.runs / "whole"
