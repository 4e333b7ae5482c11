"""Checks that Prefect's settings, home folder and API can be used, each failure as one line that names the cause.

Imports Prefect inside functions: its settings are read from the environment on import.
"""

from __future__ import annotations

import contextvars
import io
import os
import re
import socket
import sqlite3
import threading
import urllib.request
import warnings
from collections.abc import Mapping
from contextlib import closing, redirect_stderr
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx

from pipeline.errors import InputError
from pipeline.io.files import check_writable

LOOPBACK = ("localhost", "127.0.0.1", "::1")
ANSWER_SECONDS = 4.0
"""Seconds within which a configured server must answer."""
POSTGRES_PORT = 5432
API_URL = "PREFECT_API_URL"
_ERROR_LINE = re.compile(r"(?:^|[\s|])((?:[A-Za-z_]\w*\.)*[A-Za-z_]\w*(?:Error|Exception|Refused|Warning)): (\S.*)$")
_OTHER_LINE = re.compile(r"^(?:ERROR:|error:|Error:|.*\bERROR\b.*? - )\s*(\S.*)$")


def bypass_proxies(environment: Mapping[str, str], *hosts: str) -> dict[str, str]:
    """Variables by which requests to this machine, and to ``hosts``, use no proxy; others still do."""
    name = "no_proxy" if environment.get("no_proxy") else "NO_PROXY"  # readers prefer the first
    there = [host for part in environment.get(name, "").split(",") if (host := part.strip())]
    value = ",".join(there if "*" in there else dict.fromkeys([*there, *LOOPBACK, *hosts]))
    return {"no_proxy": value, "NO_PROXY": value}


def prefect_settings() -> Any:
    """Prefect's settings.

    Raises:
        InputError: a file or variable of settings is invalid, or the environment's proxies cannot be used.
    """
    try:
        # Prefect prints an error of settings on import, and raises it again below
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")  # a home that cannot be created: check_home
            from prefect.settings import get_current_settings

            settings = get_current_settings()
    except Exception as error:
        text = "; ".join(line.strip() for line in str(error).splitlines() if "errors.pydantic.dev" not in line)
        home = os.environ.get("PREFECT_HOME", "~/.prefect")
        raise InputError(
            f"Prefect's settings (variables PREFECT_*, {home}/profiles.toml, .env, prefect.toml, pyproject.toml): "
            f"{type(error).__name__}: {text}"
        ) from None
    try:
        httpx.Client().close()
    except Exception as error:  # a proxy of an unknown kind, or one that needs another package
        names = ", ".join(
            name for name in sorted(os.environ) if name.lower() in {"http_proxy", "https_proxy", "all_proxy"}
        )
        raise InputError(f"proxy variables ({names}): {type(error).__name__}: {str(error).splitlines()[0]}") from None
    return settings


def check_server(*, temporary: bool) -> bool:
    """Check the server of this process's runs. Returns whether a temporary one is to be started.

    Args:
        temporary: whether a temporary one will do.

    Raises:
        InputError: no server answers at the configured address, or none is configured and no temporary one can run.
    """
    settings = prefect_settings()
    if settings.api.url:
        check_api(settings)
        return False
    if not temporary or not settings.server.ephemeral.enabled:
        raise InputError(
            f"{API_URL}: found none; want the address of a Prefect server, such as http://127.0.0.1:4200/api "
            "(`prefect server start`)"
        )
    check_home(settings)
    return True


def check_home(settings: Any) -> None:
    """Raise InputError if a server cannot keep its database in Prefect's home folder."""
    try:
        check_writable(settings.home)
        settings.home.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"PREFECT_HOME: found {settings.home}, where nothing can be written ({error.strerror}); Prefect's server "
            "keeps its database there. Want a folder of yours: PREFECT_HOME=FOLDER"
        ) from None
    check_database(settings)


def check_database(settings: Any) -> None:
    """Raise InputError if the database of a server that is to be started is damaged, read-only or does not answer."""
    secret = settings.server.database.connection_url
    url = urlsplit(secret.get_secret_value() if secret else f"sqlite:///{settings.home}/prefect.db")
    try:
        if url.hostname is not None:
            found, port = url.hostname, url.port or POSTGRES_PORT
            socket.create_connection((found, port), ANSWER_SECONDS).close()
        elif url.scheme.startswith("sqlite") and Path(found := url.path[1:]).is_file():
            open(found, "r+b").close()
            with closing(sqlite3.connect(found, timeout=ANSWER_SECONDS)) as database:
                database.execute("SELECT name FROM sqlite_master").fetchall()
    except (OSError, sqlite3.Error) as error:
        if getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_BUSY:  # another server has it
            return
        raise InputError(
            f"Prefect's database: found {found}, which cannot be used ({cause(error)}); want one that "
            "Prefect's server can read and write. A damaged file may be moved away: the server makes a new one"
        ) from None


def check_api(settings: Any) -> None:
    """Raise InputError unless a Prefect server answers at the configured address in time."""
    url = settings.api.url
    failures: list[Exception | None] = []
    # in a thread: a timeout of httpx is of each read, and a server may send byte by byte
    run = partial(contextvars.copy_context().run, _try_api, settings, failures)
    thread = threading.Thread(target=run, name="check-api", daemon=True)
    thread.start()
    thread.join(2 * ANSWER_SECONDS)
    error = failures[0] if failures else TimeoutError("its answer is not complete in time")
    if error is not None:
        raise InputError(
            f"{API_URL}: found {without_password(url)} (from {source_of_api_url()}), where no Prefect server can be "
            f"used: {cause(error)}{_proxy_of(url)}; want the address of one that runs"
        )


def _try_api(settings: Any, failures: list[Exception | None]) -> None:
    """Add the failure of a request to the configured server, or None."""
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings

    key, auth = settings.api.key, settings.api.auth_string
    failure: Exception | None = None
    try:
        with (
            temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}),
            SyncPrefectClient(
                settings.api.url,
                api_key=key.get_secret_value() if key else None,
                auth_string=auth.get_secret_value() if auth else None,
                httpx_settings={"timeout": ANSWER_SECONDS},
            ) as client,
        ):
            failure = client.api_healthcheck()
            if failure is None:
                client.raise_for_api_version_mismatch()
    except Exception as error:
        failure = error
    failures.append(failure)


def cause(error: BaseException) -> str:
    """The class and first line of an error, or of what caused it."""
    while error.__cause__ is not None and isinstance(error, RuntimeError):  # "Failed to reach API"
        error = error.__cause__
    text = next(iter(str(error).splitlines()), "").split(" - For more information")[0]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def without_password(url: str) -> str:
    """A URL without user and password."""
    return re.sub(r"://[^/@]*@", "://", url)


def _proxy_of(url: str) -> str:
    """Words that name the proxy that requests to ``url`` go through; "" if there is none."""
    parts = urlsplit(url)
    proxies = urllib.request.getproxies()
    scheme = next((s for s in (parts.scheme, "all") if proxies.get(s)), None)
    if scheme is None or urllib.request.proxy_bypass(parts.hostname or ""):
        return ""
    return (
        f" (through the proxy {without_password(proxies[scheme])} of {scheme.upper()}_PROXY; NO_PROXY={parts.hostname} "
        "leaves it out)"
    )


def source_of_api_url() -> str:
    """The place that Prefect has its API's URL from: the environment, a file, or a profile."""
    from prefect.context import get_settings_context

    if os.environ.get(API_URL):
        return "the environment"
    for name, words in ((".env", API_URL), ("prefect.toml", "url"), ("pyproject.toml", "tool.prefect")):
        file = Path(name).absolute()
        if file.is_file() and words in file.read_text(errors="replace"):
            return str(file)
    profile = get_settings_context().profile
    return f"the profile {profile.name!r} of {profile.source or get_settings_context().settings.profiles_path}"


def failure_reason(output: bytes) -> str:
    """The line of a program's output that says why it failed: the last error, else the last line."""
    lines = [line.strip() for line in output.decode(errors="replace").splitlines() if line.strip()]
    for line in reversed(lines):
        if found := _ERROR_LINE.search(line):
            return f"{found[1]}: {found[2]}"
    for line in reversed(lines):
        if found := _OTHER_LINE.match(line):
            return found[1]
    return lines[-1] if lines else "it wrote nothing"
