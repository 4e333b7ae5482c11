"""What several tests of the flow need."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.flows.up import Up


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """``self-train up``: a server on loopback, every flow deployed, and a worker."""
    started = Up(tmp_path_factory.mktemp("up"))
    try:
        started.wait()
        yield started
    finally:
        started.stop()
