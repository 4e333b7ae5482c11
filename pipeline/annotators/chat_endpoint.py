"""Client of an OpenAI-style chat endpoint, such as vLLM's: requests at a time, retries, a key that is not shown.

Loads no torch.
"""

from __future__ import annotations

import base64
import io
import logging
import os
import re
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, Literal

import httpx
from PIL import Image
from pydantic import Field, model_validator

from pipeline.config.secrets import refuse_secrets
from pipeline.data.images import ImageError
from pipeline.errors import InputError, StageError
from pipeline.io.strict_model import StrictModel

log = logging.getLogger("glip_self_train")

LONGEST_WAIT = 300.0
"""Seconds that are waited at most before a retry, whatever the endpoint says."""
AGAIN = {408, 409, 425, 429, 500, 502, 503, 504, 529}
"""HTTP statuses after which the same request may succeed."""
OF_THE_IMAGE = {400, 413, 422}
"""HTTP statuses that another image or text may not meet."""
EXCERPT = 200
"""Characters of an answer in an error."""


class ChatEndpointConfig(StrictModel):
    """The part of a config.json that is of the endpoint."""

    model_type: Literal["http"]
    url: str | None = Field(None, description="base URL of the endpoint: http://127.0.0.1:8000/v1")
    url_variable: str | None = Field(None, description="environment variable with the base URL, in place of url")
    key_variable: str | None = Field(None, description="environment variable with the key; null: none is sent")
    model: str = Field(description="name of the model at the endpoint")
    image_format: Literal["jpeg", "png"] = "jpeg"
    request: dict[str, Any] = Field({}, description="further fields of the request's JSON")
    concurrency: int = Field(8, ge=1, description="requests at a time; a batch should have some times as many")
    timeout: float = Field(120.0, gt=0, description="seconds for an answer")
    retries: int = Field(6, ge=0, description="of a request, after waits of 1, 2, 4, ... s or as the endpoint says")

    @model_validator(mode="after")
    def _has_one_url(self) -> ChatEndpointConfig:
        if (self.url is None) == (self.url_variable is None):
            raise ValueError("want one of url and url_variable")
        return self


class ChatEndpoint:
    """A chat endpoint. ``pool``: threads for ``concurrency`` requests at a time.

    Args:
        path: of the config.json, for errors.

    Raises:
        InputError: a variable is not set, or the URL may contain a secret.
    """

    def __init__(self, config: ChatEndpointConfig, path: Path) -> None:
        self._config = config
        url = config.url if config.url is not None else _variable(config.url_variable, path)
        refuse_secrets(f"{path}: url", url)
        self.url = f"{url.rstrip('/')}/chat/completions"
        self._key = None if config.key_variable is None else _variable(config.key_variable, path)
        self._client = httpx.Client(
            headers={} if self._key is None else {"Authorization": f"Bearer {self._key}"}, timeout=config.timeout,
            limits=httpx.Limits(max_connections=config.concurrency, max_keepalive_connections=config.concurrency),
        )  # fmt: skip
        self.pool = ThreadPoolExecutor(config.concurrency, "request")

    def choice(self, content: Sequence[Mapping[str, Any]], fields: Mapping[str, Any]) -> dict[str, Any]:
        """The first choice of the answer to one user message of these parts.

        Args:
            fields: of the request, such as ``max_tokens``.

        Raises:
            ImageError: the endpoint refuses this request. StageError: it would refuse others, too.
        """
        config = self._config
        body = {
            "model": config.model, "messages": [{"role": "user", "content": content}], "temperature": 0,
            **fields, **config.request,
        }  # fmt: skip
        response = self._post(body)
        try:
            choice = response.json()["choices"][0]
            choice["message"]["content"]
        except (ValueError, KeyError, IndexError, TypeError):
            raise StageError(f"{self.url}: found {self._excerpt(response)}; want a chat completion") from None
        assert isinstance(choice, dict)
        return choice

    def _post(self, body: dict[str, Any]) -> httpx.Response:
        """POST with retries."""
        for attempt in range(self._config.retries + 1):
            wait, for_all = 2.0**attempt, True
            try:
                response = self._client.post(self.url, json=body)
            except httpx.TransportError as error:
                reason, for_all = type(error).__name__, not isinstance(error, httpx.ReadTimeout)
            else:
                if response.is_success:
                    return response
                reason = f"HTTP {response.status_code}: {self._excerpt(response)}"
                if response.status_code in OF_THE_IMAGE:
                    raise ImageError("request_refused", reason)
                if response.status_code not in AGAIN:
                    raise StageError(f"{self.url}: {reason}; want an endpoint that knows the key and the model")
                wait, for_all = _retry_after(response, wait), response.status_code != 500
            if attempt < self._config.retries:
                log.debug("%s: %s; again in %.1f s", self.url, reason, min(wait, LONGEST_WAIT))
                time.sleep(min(wait, LONGEST_WAIT))
        if for_all:
            raise StageError(f"{self.url}: no answer in {self._config.retries + 1} tries ({reason}); is the server up?")
        raise ImageError("no_answer", reason)

    def _excerpt(self, response: httpx.Response) -> str:
        """Start of an answer, in one line and without the key."""
        text = " ".join(response.text.split())
        return (text.replace(self._key, "***") if self._key else text)[:EXCERPT] or "an empty answer"


def image_part(image: Image.Image, kind: Literal["jpeg", "png"]) -> dict[str, Any]:
    """The image as a part of a message, by a data URL."""
    data = io.BytesIO()
    image.save(data, kind, quality=95)
    url = f"data:image/{kind};base64,{base64.b64encode(data.getvalue()).decode()}"
    return {"type": "image_url", "image_url": {"url": url}}


def _variable(name: str | None, path: Path) -> str:
    value = os.environ.get(name or "")
    if not value:
        raise InputError(f"{path}: the environment variable {name} is not set")
    return value


def _retry_after(response: httpx.Response, otherwise: float) -> float:
    """Seconds that the header Retry-After states, as a number or a date (RFC 9110, 10.2.3)."""
    text = response.headers.get("Retry-After", "").strip()
    try:
        seconds = (
            float(text) if re.fullmatch(r"[\d.]+", text) else parsedate_to_datetime(text).timestamp() - time.time()
        )
    except (ValueError, TypeError):
        return otherwise
    return max(seconds, 0.0)
