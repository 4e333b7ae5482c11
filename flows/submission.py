"""Start a deployed run on a server, and watch it from a terminal."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any
from uuid import UUID

import click
import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId, ArtifactFilterKey
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound
from prefect.settings import get_current_settings

from flows.run_progress import PROGRESS_KEY
from flows.server_checks import cause
from pipeline.config import SelfTrainConfig
from pipeline.errors import InputError


def start(deployment: str, config: SelfTrainConfig, out: Path) -> tuple[UUID, str]:
    """Start a run of a deployment; returns its id and the URL of its page.

    Raises:
        InputError: the server has no such deployment, or does not take the run.
    """
    parameters = {"out": str(out), "config": config.model_dump(mode="json")}
    try:
        run: Any = run_deployment(deployment, parameters=parameters, timeout=0, flow_run_name=out.name)
    except ObjectNotFound:
        raise InputError(
            f"--deployment: found no {deployment} on the server; want one that `self-train up` makes"
        ) from None
    except httpx.HTTPError as error:
        raise InputError(f"--deployment {deployment}: the server did not start a run: {cause(error)}") from None
    settings = get_current_settings()
    page = settings.ui_url or str(settings.api.url).removesuffix("/api")
    return run.id, f"{page}/runs/flow-run/{run.id}"


def watch_run(run: UUID, seconds: float) -> bool:
    """Show a run's progress until it ends; returns whether it completed.

    A server that does not answer for a while is waited for.

    Raises:
        InputError: the run was deleted, or the server refuses requests.
    """
    shown, live = "", sys.stderr.isatty()
    with get_client(sync_client=True) as client:
        while True:
            state = None
            try:
                state = client.read_flow_run(run).state
                line = f"{state.name if state else 'Pending'}: {_progress(client, run)}".removesuffix(": ")
            except httpx.TransportError as error:
                line = f"no answer from the server ({cause(error)}); trying again"
            except (ObjectNotFound, httpx.HTTPStatusError) as error:
                raise InputError(f"run {run}: the server no longer shows it: {cause(error)}") from None
            if line != shown:
                click.echo(f"\r\x1b[2K{line}" if live else line, err=True, nl=not live)
                shown = line
            if state is not None and state.is_final():
                click.echo(f"{chr(10) if live else ''}{state.name}. {state.message or ''}".rstrip(), err=True)
                return state.is_completed()
            time.sleep(seconds)


def _progress(client: SyncPrefectClient, run: UUID) -> str:
    """The run's progress artifact as text; "" before there is one."""
    found = client.read_artifacts(
        artifact_filter=ArtifactFilter(
            flow_run_id=ArtifactFilterFlowRunId(any_=[run]), key=ArtifactFilterKey(any_=[PROGRESS_KEY])
        )
    )
    return f"{float(str(found[0].data)):.0f} % {found[0].description or ''}" if found else ""
