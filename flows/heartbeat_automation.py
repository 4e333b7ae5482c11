"""Runs whose process is gone: an automation of the server marks them as crashed when their heartbeat stops.

``python -m flows.heartbeat_automation`` makes it on the server that PREFECT_API_URL names. Workers set PREFECT_FLOWS_HEARTBEAT_FREQUENCY=60, or their
runs have no heartbeat.
"""

from __future__ import annotations

from datetime import timedelta

from prefect.automations import Automation
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification

from flows.local_server import HEARTBEAT_SECONDS

NAME = "mark silent runs as crashed"


def ensure_automation(silence: int = 3 * HEARTBEAT_SECONDS) -> None:
    """Make the automation on the server that PREFECT_API_URL names, unless it is there."""
    try:
        Automation.read(name=NAME)  # type: ignore[unused-coroutine]  # Prefect's types know the async half
        return
    except ValueError:
        pass
    ended = {f"prefect.flow-run.{state}" for state in ("Completed", "Failed", "Cancelled", "Crashed")}
    Automation(
        name=NAME,
        description="A run tells now and then that it lives; one that has been silent for long has lost its process.",
        trigger=EventTrigger(
            after={"prefect.flow-run.heartbeat"},
            expect={"prefect.flow-run.heartbeat", *ended},
            match=ResourceSpecification({"prefect.resource.id": ["prefect.flow-run.*"]}),
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=timedelta(seconds=silence),
        ),
        actions=[
            ChangeFlowRunState(
                state=StateType.CRASHED, message=f"no sign of life for {silence} seconds: its process is gone"
            )
        ],
    ).create()


if __name__ == "__main__":
    ensure_automation()
