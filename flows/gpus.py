"""Which GPUs a job may use: a concurrency limit of Prefect's for each GPU of a machine, seen and changed on the dashboard.

Runs that share a machine and a server share its GPUs: a job waits until as many as it needs are free, and sees no others. A limit is
``gpu-HOST-ID``, of one job at a time unless somebody has set it otherwise. Slots are leased: those of a flow that was killed come
back by themselves after LEASE_SECONDS.
"""

from __future__ import annotations

import logging
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate
from prefect.client.schemas.responses import GlobalConcurrencyLimitResponse
from prefect.concurrency.sync import concurrency
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound

from flows.children import VISIBLE
from pipeline.errors import InputError

log = logging.getLogger("glip_self_train")

LEASE_SECONDS = 60.0
LOOK_AGAIN = 2.0
TRY_SECONDS = 1.0
"""How long to try for GPUs that seemed free a moment ago, before looking for others."""


def gpus_here() -> list[str]:
    """Ids of this machine's GPUs: those that CUDA_VISIBLE_DEVICES names, else all that the driver lists; torch is not asked, as it would
    open them."""
    visible = os.environ.get(VISIBLE)
    if visible is not None:
        return [part.strip() for part in visible.split(",") if part.strip() and part.strip() != "-1"]
    if shutil.which("nvidia-smi") is None:
        return []
    command = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True)
    return done.stdout.split() if done.returncode == 0 else []


def limit_name(gpu: str) -> str:
    """The GPU's limit, the same for everybody on this machine."""
    return f"gpu-{socket.gethostname()}-{gpu}"


@contextmanager
def taken(count: int) -> Iterator[list[str]]:
    """Wait for ``count`` of this machine's GPUs and hold them meanwhile; gives their ids.

    Raises:
        InputError: the machine has fewer.
    """
    here = gpus_here()
    if count > len(here):
        raise InputError(
            f"resources.gpus: a job wants {count} GPUs, and there are {len(here)} on {socket.gethostname()}"
            + (f" ({VISIBLE}={os.environ[VISIBLE]})" if VISIBLE in os.environ else "")
        )
    names = {limit_name(gpu): gpu for gpu in here}
    with ExitStack() as held:
        while not (mine := _take(count, names, held)):
            log.info("waiting for %d of the GPUs %s", count, ", ".join(here))
            time.sleep(LOOK_AGAIN)
        yield [names[name] for name in mine]


def _take(count: int, names: Mapping[str, str], held: ExitStack) -> list[str]:
    """The limits that are ours until ``held`` ends, all or none."""
    free = _free(names)[:count]
    if len(free) < count:
        return []
    slots = concurrency(
        free, timeout_seconds=TRY_SECONDS, lease_duration=LEASE_SECONDS, strict=True,
        raise_on_lease_renewal_failure=False,  # a job goes on while its server is away
    )  # fmt: skip
    try:
        held.enter_context(slots)
    except TimeoutError:  # somebody was quicker
        return []
    return free


def _free(names: Iterable[str]) -> list[str]:
    """Limits with a free slot, the least used first."""
    with get_client(sync_client=True) as client:
        limits = [_limit(client, name) for name in names]
    open_ones = [limit for limit in limits if limit.active_slots < limit.limit]
    return [limit.name for limit in sorted(open_ones, key=lambda limit: limit.active_slots)]


def _limit(client: SyncPrefectClient, name: str) -> GlobalConcurrencyLimitResponse:
    """The limit as somebody has set it, or a new one of one job at a time."""
    try:
        return client.read_global_concurrency_limit_by_name(name)
    except ObjectNotFound:
        with suppress(ObjectAlreadyExists):  # another run's job may be as quick
            client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name=name, limit=1))
        return client.read_global_concurrency_limit_by_name(name)
