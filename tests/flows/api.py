"""Prefect's API as tests ask it."""

from __future__ import annotations

from typing import Any

import httpx
from tenacity import retry, retry_if_exception, stop_after_delay, wait_fixed


def _busy(error: BaseException) -> bool:
    if isinstance(error, httpx.HTTPStatusError):
        return error.response.status_code == 503
    return isinstance(error, httpx.TransportError)


@retry(retry=retry_if_exception(_busy), stop=stop_after_delay(180), wait=wait_fixed(1), reraise=True)
def answer(method: str, url: str, body: dict[str, Any] | None = None) -> httpx.Response:
    """The answer, asked for again while the server waits for SQLite (503), as Prefect's own client does."""
    return httpx.request(method, url, json=body, timeout=30).raise_for_status()


def ask(method: str, url: str, body: dict[str, Any] | None = None) -> Any:
    """The answer's JSON."""
    return answer(method, url, body).json()
