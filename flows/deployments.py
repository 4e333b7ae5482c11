"""Set-up of a server for ``self-train up``: work pool and deployments, without overwriting anybody's settings.

Runs as a process of its own, with PREFECT_API_URL set: ``python -m flows.deployments``.
"""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from pipeline.cli.common import one_line_errors

ROOT = Path(__file__).resolve().parents[1]
DEPLOYMENTS = ROOT / "flows" / "prefect.yaml"
POOL = "glip-self-train"
OLD_POOL = "local"
"""The pool of earlier versions, which other projects may use too."""


def set_up() -> list[str]:
    """Create the pool if it is missing, and bring the code of existing deployments up to date.

    What somebody may have set stays: the pool's settings; parameters, variables, schedules, tags and limits of a
    deployment, and its pool. A deployment in the pool of earlier versions moves to ours, and loses their limit of
    one run.

    Returns:
        entrypoints of the deployments that are missing.
    """
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import DeploymentUpdate, WorkPoolCreate
    from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound, PrefectHTTPStatusError
    from prefect.flows import load_flow_from_entrypoint
    from prefect.utilities.callables import parameter_schema
    from prefect.workers.process import ProcessWorker

    missing = []
    with get_client(sync_client=True) as client:
        try:
            client.read_work_pool(POOL)
        except ObjectNotFound:
            template = ProcessWorker.get_default_base_job_template()
            with suppress(ObjectAlreadyExists):  # by another `self-train up` meanwhile
                client.create_work_pool(WorkPoolCreate(name=POOL, type="process", base_job_template=template))
        for entry in yaml.safe_load(DEPLOYMENTS.read_text())["deployments"]:
            flow: Any = load_flow_from_entrypoint(str(ROOT / entry["entrypoint"]))
            name = f"{flow.name}/{entry['name']}"
            try:
                found = client.read_deployment_by_name(name)
            except ObjectNotFound:
                missing.append(entry["entrypoint"])
                continue
            code: dict[str, Any] = {
                "entrypoint": entry["entrypoint"],
                "pull_steps": [{"prefect.deployments.steps.set_working_directory": {"directory": str(ROOT)}}],
                "parameter_openapi_schema": parameter_schema(flow).model_dump_for_openapi(),
            }
            if found.work_pool_name == OLD_POOL:
                code |= {"work_pool_name": POOL, "job_variables": found.job_variables, "concurrency_limit": None}
            try:
                client.update_deployment(found.id, DeploymentUpdate(**code))
            except PrefectHTTPStatusError as error:
                detail = " ".join(error.response.text.split())[:500]
                print(f"{name}: its settings on the server do not fit this version ({detail})", file=sys.stderr)
    return missing


if __name__ == "__main__":
    with one_line_errors("deployments"):
        print("\n".join(set_up()))
