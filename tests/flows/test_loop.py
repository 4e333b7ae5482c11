"""The whole loop from the command line, with Prefect's temporary server: what a first user runs."""

from __future__ import annotations

import subprocess

import pytest

from tests.flows.tiny import assert_whole, environment, misleading, run_command
from tests.flows.up import children_of

pytestmark = [pytest.mark.slow, pytest.mark.loop, pytest.mark.timeout(1800)]


def test_the_whole_loop_runs_with_a_temporary_server(tmp_path):
    """From a folder of the user's whose files have the names of our packages."""
    out = tmp_path / "run"
    folder = misleading(tmp_path / "users")
    env = environment(tmp_path / "prefect")
    done = subprocess.run(run_command(out), env=env, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    assert_whole(out)
    assert "NOVEL R@1" in done.stdout and "chance" in done.stdout
    assert f"report:  {out / 'report' / 'index.html'}" in done.stdout
    assert not children_of(out)
