"""Addresses in settings hold no secrets: settings are stored with a run and shown on its page, for all to read."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field

from pipeline.errors import InputError

_LOCAL = r"(?:[^:]|:(?:/?:)*(?:[^:/]|/[^:/]))*(?::(?:/?:)*/?)?"
"""Anything without ``://``."""
_HOST = r"(?:[^/?#@:\[\]]*|\[[0-9A-Fa-f:.]+\])(?::[0-9]+)?"
"""Or a bucket. No ``@``, and after a colon only a port: what stands before an ``@`` is a name, a password or a token."""
_PATH = r"(?:/(?:[^?&#]|[?&#][^=/]*/)*(?:[?&#][^=/]*)?)?"
"""No ``?name=value``, which is what signed URLs have (and what no shard's address needs); ``?`` alone is a glob's."""
PATTERN = rf"^(?:{_LOCAL}|[A-Za-z][A-Za-z0-9+.-]*://{_HOST}{_PATH})$"
"""A path or a URL without a secret. The same for Rust's regex (pydantic), Python's (the API, by JSON Schema) and JavaScript's (the run
form), so without look-around."""

Address = Annotated[str, Field(pattern=PATTERN)]


def refuse_secrets(where: str, value: Any) -> None:
    """Look through a setting of addresses: one, a sequence, or a mapping to them.

    Raises:
        InputError: one that may hold a secret. Not a ValueError, as pydantic would repeat the value.
    """
    if isinstance(value, str) and not re.search(PATTERN, value):
        raise InputError(
            f"{where}: want an address without anything before an @ and without ?name=value (a password, a token, a signed URL): it "
            "would stand in parameters, logs and files for all to read. Give the secret by the environment of the worker, or by a "
            "block of Prefect's (docs/labelling.md, buckets and web servers)"
        )
    parts = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list | tuple) else ()
    for name, part in parts:
        refuse_secrets(f"{where}.{name}", part)
