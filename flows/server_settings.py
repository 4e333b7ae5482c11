"""Settings of a Prefect server that we start, as environment variables. Those that the environment has already win."""

from __future__ import annotations

SERVER_SETTINGS = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    # the browser asks where it got the page from, by whatever name it knows that; Prefect's default is the name that the server knows
    "PREFECT_UI_API_URL": "/api",
    # Task runs reach the database through a queue in the server's memory that holds 10,000 events and drops what comes
    # then. Written one by one, as is the default, 10,000 empty task runs at once left 3,600 on the page; in batches 6,400.
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE": "100",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_FLUSH_INTERVAL": "1",
    "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_BATCH_SIZE": "200",
    "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_FLUSH_INTERVAL": "1",
    # leases of GPUs (flows/gpu_leases.py): in the server's memory, as is the default, a server that dies would never give them back
    "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
}
