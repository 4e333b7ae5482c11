"""Server automation that marks runs as crashed when their heartbeat stops.

``python -m flows.heartbeat_automation`` creates it on the server of PREFECT_API_URL. Runs send
heartbeats only if their worker sets PREFECT_FLOWS_HEARTBEAT_FREQUENCY=60.
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
    """Create the automation on the server of PREFECT_API_URL, unless it exists.

    silence: seconds without a heartbeat after which a run counts as crashed.
    """
    try:
        Automation.read(name=NAME)  # type: ignore[unused-coroutine]  # Prefect's types know the async half
        return
    except ValueError:
        pass
    ended = {f"prefect.flow-run.{state}" for state in ("Completed", "Failed", "Cancelled", "Crashed")}
    message = f"no heartbeat for {silence} seconds: its process is gone"
    Automation(
        name=NAME,
        description="A run sends heartbeats; one that has been silent for long has lost its process.",
        trigger=EventTrigger(
            after={"prefect.flow-run.heartbeat"},
            expect={"prefect.flow-run.heartbeat", *ended},
            match=ResourceSpecification({"prefect.resource.id": ["prefect.flow-run.*"]}),
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=timedelta(seconds=silence),
        ),
        actions=[ChangeFlowRunState(state=StateType.CRASHED, message=message)],
    ).create()


if __name__ == "__main__":
    ensure_automation()
