"""Refusal of secrets in settings, which are stored with a run and shown on its page."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field

from pipeline.errors import InputError

_LOCAL = r"(?:[^:]|:(?:/?:)*(?:[^:/]|/[^:/]))*(?::(?:/?:)*/?)?"
"""Anything without ``://``."""
_HOST = r"(?:[^/?#@:\[\]]*|\[[0-9A-Fa-f:.]+\])(?::[0-9]+)?"
"""Host or bucket, without ``@`` (credentials) and with nothing but a port after a colon."""
_PATH = r"(?:/(?:[^?&#]|[?&#][^=/]*/)*(?:[?&#][^=/]*)?)?"
"""Path without ``?name=value``, as in signed URLs; ``?`` alone is a glob's."""
PATTERN = rf"^(?:{_LOCAL}|[A-Za-z][A-Za-z0-9+.-]*://{_HOST}{_PATH})$"
"""Path or URL without a secret. Valid for the regular expressions of Rust (pydantic), Python (the
API, by JSON Schema) and JavaScript (the run form), hence without look-around.
"""

Address = Annotated[str, Field(pattern=PATTERN)]


def refuse_secrets(where: str, value: Any) -> None:
    """Check a setting: an address, a sequence of addresses, or a mapping to addresses.

    Raises:
        InputError: an address may contain a secret. Not a ValueError, as pydantic would print the
            value.
    """
    if isinstance(value, str) and not re.search(PATTERN, value):
        raise InputError(
            f"{where}: want an address without anything before an @ and without ?name=value (a password, a token, a "
            "signed URL), which would be visible in parameters, logs and files. Provide secrets in the worker's "
            "environment or in a Prefect block (docs/labelling.md, buckets and web servers)"
        )
    items = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list | tuple) else ()
    for name, item in items:
        refuse_secrets(f"{where}.{name}", item)
