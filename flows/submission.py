"""Start a deployed run on a server, and watch it from a terminal."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any
from uuid import UUID

import click
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId, ArtifactFilterKey
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound
from prefect.settings import get_current_settings

from flows.run_progress import PROGRESS_KEY
from pipeline.config import SelfTrainConfig
from pipeline.errors import InputError


def start(deployment: str, config: SelfTrainConfig, out: Path) -> tuple[UUID, str]:
    """Start a run of a deployment; returns its id and the URL of its page.

    Raises:
        InputError: the server has no such deployment.
    """
    parameters = {"out": str(out), "config": config.model_dump(mode="json")}
    try:
        run: Any = run_deployment(deployment, parameters=parameters, timeout=0, flow_run_name=out.name)
    except ObjectNotFound:
        raise InputError(
            f"--deployment: found no {deployment} on the server; want one that `self-train up` makes"
        ) from None
    settings = get_current_settings()
    page = settings.ui_url or str(settings.api.url).removesuffix("/api")
    return run.id, f"{page}/runs/flow-run/{run.id}"


def watch_run(run: UUID, seconds: float) -> bool:
    """Show a run's progress until it ends; returns whether it completed."""
    shown, live = "", sys.stderr.isatty()
    with get_client(sync_client=True) as client:
        while True:
            state = client.read_flow_run(run).state
            final = state is not None and state.is_final()
            line = f"{state.name if state else 'Pending'}: {_progress(client, run)}".removesuffix(": ")
            if line != shown:
                click.echo(f"\r\x1b[2K{line}" if live else line, err=True, nl=not live)
                shown = line
            if state is not None and final:
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
