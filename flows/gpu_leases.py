"""Which GPUs a job may use: a concurrency limit of Prefect's for each GPU of a machine, seen and changed on the dashboard.

Runs that share a machine share its GPUs: a job waits until as many as it needs are free, and sees no others. A limit is
``gpu-HOST-ID``, of one job at a time unless somebody has set it otherwise.

A job holds two things of each GPU. A lock of the machine's (pipeline/system/host_lock.py) is what keeps others off: it holds whatever becomes of
the server, among runs of several servers too, and the kernel gives it back when the flow ends. The limit's slot is what the
dashboard shows, and what excludes those who share the server but not the folder of locks. SharedBuffers are leased, and the lease of a job whose
server was away for too long is lost; those of a flow that was killed come back by themselves after LEASE_SECONDS.
"""

from __future__ import annotations

import logging
import os
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate
from prefect.client.schemas.responses import GlobalConcurrencyLimitResponse
from prefect.concurrency.sync import concurrency
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound

from flows.subprocess_jobs import ENDING, VISIBLE, go_on_or_end
from pipeline.errors import InputError
from pipeline.system.host_lock import host_lock

log = logging.getLogger("glip_self_train")

LEASE_SECONDS = 60.0
LOOK_AGAIN = 2.0
TRY_SECONDS = 1.0
"""How long to try for GPUs that seemed free a moment ago, before looking for others."""


def gpus_here() -> list[str]:
    """Ids of this machine's GPUs: those that CUDA_VISIBLE_DEVICES names, else all that the driver lists; torch is not asked, as it would
    open them.

    An id is the GPU's UUID where nvidia-smi tells it: a scheduler that gives each job some of the GPUs lets each count its own from 0.
    Numbers in CUDA_VISIBLE_DEVICES are taken for nvidia-smi's.
    """
    uuids = _driver()
    visible = os.environ.get(VISIBLE)
    if visible is None:
        return list(uuids.values())
    named = [part.strip() for part in visible.split(",")]
    return list(dict.fromkeys(_uuid(part, uuids) for part in named if part and part != "-1"))


def _driver() -> dict[str, str]:
    """Index -> UUID of the GPUs that the driver lists."""
    if shutil.which("nvidia-smi") is None:
        return {}
    command = ["nvidia-smi", "--query-gpu=index,uuid", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        return {}
    rows = (line.partition(",") for line in done.stdout.splitlines())
    return {index.strip(): uuid.strip() for index, comma, uuid in rows if comma}


def _uuid(named: str, uuids: Mapping[str, str]) -> str:
    """The whole UUID of a GPU that is named by its index or the beginning of its UUID; what cannot be told stays as it is."""
    begun = [uuid for uuid in uuids.values() if uuid.startswith(named)] if named.startswith("GPU-") else []
    return uuids.get(named) or (begun[0] if len(begun) == 1 else named)


def limit_name(gpu: str) -> str:
    """The GPU's limit, the same for everybody on this machine."""
    return f"gpu-{socket.gethostname()}-{gpu}"


def check_count(count: int, here: Sequence[str]) -> None:
    """Raises InputError: a job wants more GPUs than this machine has."""
    if count > len(here):
        raise InputError(
            f"resources.gpus: a job wants {count} GPUs, and there are {len(here)} on {socket.gethostname()}"
            + (f" ({VISIBLE}={os.environ[VISIBLE]})" if VISIBLE in os.environ else "")
        )


@contextmanager
def taken(count: int, waiting: Callable[[str], None] = log.info) -> Iterator[list[str]]:
    """Wait for ``count`` of this machine's GPUs and hold them meanwhile; gives their ids. ``waiting`` is told now and then while it waits.

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
            go_on_or_end("waiting for GPUs")
        yield [names[name] for name in mine]


def _take(count: int, names: Iterable[str], held: ExitStack) -> list[str]:
    """The limits that are ours until ``held`` ends, all or none."""
    with ExitStack() as ours:
        mine: list[str] = []
        for limit in _open_limits(names):
            # one lock a slot, and the first that is free
            if len(mine) < count and any(
                ours.enter_context(host_lock(f"{limit.name}-{i}")) for i in range(limit.limit)
            ):
                mine.append(limit.name)
        if len(mine) < count:
            return []
        slots = concurrency(
            mine, timeout_seconds=TRY_SECONDS, lease_duration=LEASE_SECONDS, strict=True,
            raise_on_lease_renewal_failure=False,  # a job goes on while its server is away: the locks still hold its GPUs
        )  # fmt: skip
        try:
            slots.__enter__()
        except TimeoutError:  # somebody was quicker
            return []
        ours.callback(_give_back, slots)
        held.push(ours.pop_all())
        return mine


def _give_back(slots: AbstractContextManager[None]) -> None:
    """Release the leased slots. The work is done by then: a server that cannot be told is no reason to do it again."""
    try:
        slots.__exit__(None, None, None)
    except Exception as error:
        log.warning("slots of GPUs come back when their lease ends, in %d s: %s", LEASE_SECONDS, type(error).__name__)


def _open_limits(names: Iterable[str]) -> list[GlobalConcurrencyLimitResponse]:
    """Limits with a free slot, the least used first."""
    with get_client(sync_client=True) as client:
        limits = [_limit(client, name) for name in names]
    return sorted((limit for limit in limits if limit.active_slots < limit.limit), key=lambda limit: limit.active_slots)


def _limit(client: SyncPrefectClient, name: str) -> GlobalConcurrencyLimitResponse:
    """The limit as somebody has set it, or a new one of one job at a time."""
    try:
        return client.read_global_concurrency_limit_by_name(name)
    except ObjectNotFound:
        with suppress(ObjectAlreadyExists):  # another run's job may be as quick
            client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name=name, limit=1))
        return client.read_global_concurrency_limit_by_name(name)
