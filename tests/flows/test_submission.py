"""Starting and watching runs on a real server that has not what is wanted, or goes away."""

from __future__ import annotations

from threading import Thread
from uuid import uuid4

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Completed, Running

from flows.submission import start, watch_run
from pipeline.config.recipes import load_recipe
from pipeline.errors import InputError
from tests.fixtures.servers import prefect_server, wait_for

pytestmark = pytest.mark.slow


def test_what_a_server_does_not_have_is_one_line_and_a_restart_of_it_is_waited_for(tmp_path, capsys):
    with prefect_server(tmp_path / "home") as server:
        with temporary_settings({PREFECT_API_URL: server.api}):
            with pytest.raises(InputError, match="found no nobody/local on the server"):
                start("nobody/local", load_recipe("demo", []), tmp_path)
            with pytest.raises(InputError, match="no longer shows it: ObjectNotFound"):
                watch_run(uuid4(), 0.1)
            with get_client(sync_client=True) as client:
                run = client.create_flow_run(flow(print, name="any"), state=Running()).id
    ended: list[bool] = []

    def watch() -> None:
        with temporary_settings({PREFECT_API_URL: server.api}):
            ended.append(watch_run(run, 0.1))

    with temporary_settings({PREFECT_API_URL: server.api}):
        watching = Thread(target=watch, daemon=True)
        watching.start()
        said: list[str] = []
        wait_for(
            lambda: said.append(capsys.readouterr().err) or "trying again" in "".join(said), 60, "a failed request"
        )
        with prefect_server(tmp_path / "home", port=int(server.api.split(":")[2].split("/")[0])):
            with get_client(sync_client=True) as client:
                client.set_flow_run_state(run, Completed())
            watching.join(60)
    assert ended == [True]
