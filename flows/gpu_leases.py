"""GPU leases: a Prefect concurrency limit per GPU of a machine, shown and editable on the dashboard.

Runs that share a machine share its GPUs: a job waits until as many as it needs are free, and sees no
others. The limit's name is ``gpu-HOST-ID``; it allows one job at a time unless it is raised there.

A job holds two things per GPU:

- A lock of the machine (pipeline/system/host_lock.py) excludes other jobs. It holds without a server and
  among runs of several servers, and the kernel releases it when the flow ends.
- A slot of the limit is shown on the dashboard, and excludes runs that share the server but not the
  folder of locks. It is leased: it is lost if the server is away for too long, and a killed flow's slot
  is released after LEASE_SECONDS.
"""

from __future__ import annotations

import logging
import os
import re
import socket
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate
from prefect.client.schemas.responses import GlobalConcurrencyLimitResponse
from prefect.concurrency.sync import concurrency
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound

from flows.subprocess_jobs import ENDING, VISIBLE, check_not_ending
from pipeline.errors import InputError
from pipeline.system.host_lock import host_lock

log = logging.getLogger("glip_self_train")

LEASE_SECONDS = 60.0
LOOK_AGAIN = 2.0
TRY_SECONDS = 1.0
"""Timeout of taking slots that were free a moment ago, before looking for others."""


def gpus_here() -> list[str]:
    """Ids of this machine's GPUs in CUDA_VISIBLE_DEVICES, or of all that the driver lists.

    An id is the GPU's UUID if nvidia-smi lists it: under some schedulers the numbers of each job start at
    0. Numbers in CUDA_VISIBLE_DEVICES are read as nvidia-smi's indices. (torch would open the GPUs.)
    """
    uuids = _driver_uuids()
    visible = os.environ.get(VISIBLE)
    if visible is None:
        return list(uuids.values())
    named = [part.strip() for part in visible.split(",")]
    return list(dict.fromkeys(_uuid(part, uuids) for part in named if part and part != "-1"))


def _driver_uuids() -> dict[str, str]:
    """Index -> UUID of the GPUs that the driver lists; empty without a driver."""
    command = ["nvidia-smi", "--query-gpu=index,uuid", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return {}
    return dict(re.findall(r"^(\d+), *(\S+)", done.stdout, re.MULTILINE))


def _uuid(named: str, uuids: Mapping[str, str]) -> str:
    """The UUID of a GPU given by its index or the beginning of its UUID; ``named`` if that is none or ambiguous."""
    begun = [uuid for uuid in uuids.values() if uuid.startswith(named)] if named.startswith("GPU-") else []
    return uuids.get(named) or (begun[0] if len(begun) == 1 else named)


def limit_name(gpu: str) -> str:
    """Name of the GPU's limit, the same for all runs on this machine."""
    return f"gpu-{socket.gethostname()}-{gpu}"


def check_count(count: int, here: Sequence[str]) -> None:
    """Raise InputError if a job needs more GPUs than there are in ``here``."""
    if count > len(here):
        raise InputError(
            f"resources.gpus: a job wants {count} GPUs, and there are {len(here)} on {socket.gethostname()}"
            + (f" ({VISIBLE}={os.environ[VISIBLE]})" if VISIBLE in os.environ else "")
        )


@contextmanager
def taken(count: int, waiting: Callable[[str], None] = log.info) -> Iterator[list[str]]:
    """Wait for ``count`` of this machine's GPUs and hold them within the context; yields their ids.

    Args:
        waiting: called with a message every LOOK_AGAIN seconds of waiting.

    Raises:
        InputError: the machine has fewer.
        EndedError: the run is being ended.
    """
    here = gpus_here()
    check_count(count, here)
    names = {limit_name(gpu): gpu for gpu in here}
    with ExitStack() as held:
        while not (mine := _take(count, names, held)):
            waiting(f"waiting for {count} of the GPUs {', '.join(here)}")
            ENDING.wait(LOOK_AGAIN)
            check_not_ending("waiting for GPUs")
        yield [names[name] for name in mine]


def _take(count: int, names: Iterable[str], held: ExitStack) -> list[str]:
    """Take ``count`` of the limits until ``held`` closes, and return their names; empty if fewer are free."""
    with ExitStack() as ours:
        mine: list[str] = []
        for limit in _open_limits(names):
            # one lock per slot: take the first free one
            if len(mine) < count and any(
                ours.enter_context(host_lock(f"{limit.name}-{i}")) for i in range(limit.limit)
            ):
                mine.append(limit.name)
        if len(mine) < count:
            return []
        slots = concurrency(
            mine, timeout_seconds=TRY_SECONDS, lease_duration=LEASE_SECONDS, strict=True,
            raise_on_lease_renewal_failure=False,  # the locks hold the GPUs while the server is away
        )  # fmt: skip
        try:
            slots.__enter__()
        except TimeoutError:  # another job took one
            return []
        ours.callback(_give_back, slots)
        held.push(ours.pop_all())
        return mine


def _give_back(slots: AbstractContextManager[None]) -> None:
    """Release the slots. An unreachable server is only logged: the job's work is done."""
    try:
        slots.__exit__(None, None, None)
    except Exception as error:
        log.warning("GPU slots are released in %d s, when their lease ends: %s", LEASE_SECONDS, type(error).__name__)


def _open_limits(names: Iterable[str]) -> list[GlobalConcurrencyLimitResponse]:
    """Limits with a free slot, the least used first."""
    with get_client(sync_client=True) as client:
        limits = [_limit(client, name) for name in names]
    return sorted((limit for limit in limits if limit.active_slots < limit.limit), key=lambda limit: limit.active_slots)


def _limit(client: SyncPrefectClient, name: str) -> GlobalConcurrencyLimitResponse:
    """The limit as it is set on the server; created for one job at a time if there is none."""
    try:
        return client.read_global_concurrency_limit_by_name(name)
    except ObjectNotFound:
        with suppress(ObjectAlreadyExists):  # another job created it first
            client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name=name, limit=1))
        return client.read_global_concurrency_limit_by_name(name)
