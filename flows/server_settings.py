"""Settings of the Prefect servers that this project starts, as defaults of environment variables."""

from __future__ import annotations

SERVER_SETTINGS = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    # Relative to the page's own address: Prefect's default is the host name that the server knows,
    # which a browser may not be able to resolve.
    "PREFECT_UI_API_URL": "/api",
    # Task runs reach the database through an in-memory queue that drops events beyond 10,000.
    # Written one by one (the default), 10,000 empty task runs at once left 3,600 on the page; in batches 6,400.
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE": "100",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_FLUSH_INTERVAL": "1",
    "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_BATCH_SIZE": "200",
    "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_FLUSH_INTERVAL": "1",
    # Leases of GPUs (flows/gpu_leases.py): the default keeps them in memory, and a server that dies
    # never releases them.
    "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
}
