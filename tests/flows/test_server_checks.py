"""A server that cannot start or be reached ends a command at once, with one line that says why and from where."""

from __future__ import annotations

import socket
import sqlite3
import subprocess
import threading
import time
from contextlib import closing, suppress
from pathlib import Path
from types import SimpleNamespace
from urllib.request import proxy_bypass

import httpx
import pytest
from pydantic import SecretStr

from flows.server_checks import bypass_proxies, check_database, failure_reason, without_password
from pipeline.errors import InputError
from tests.flows.tiny import BIN, environment, free_port, run_command

DEAD = "http://127.0.0.1:9"
PROXIES = {"HTTP_PROXY": DEAD, "HTTPS_PROXY": DEAD, "ALL_PROXY": DEAD}


def self_train(folder: Path, *arguments: str, **variables: str) -> tuple[int, list[str]]:
    """Exit code and output's lines of a command that must end by itself, and soon."""
    command = [str(BIN / "self-train"), *arguments]
    env = environment(folder / "prefect", **variables)
    began = time.monotonic()
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=120)
    assert time.monotonic() - began < 45, "want it noticed at once"  # 15 s on a machine that does nothing else
    lines = (done.stdout + done.stderr).strip().splitlines()
    assert len(lines) <= 5, lines
    return done.returncode, lines


def profile(home: Path, url: str) -> None:
    home.mkdir()
    (home / "profiles.toml").write_text(f'active = "team"\n[profiles.team]\nPREFECT_API_URL = "{url}"\n')


@pytest.mark.parametrize("variable", ["NO_PROXY", "no_proxy"])
def test_this_machine_is_reached_without_proxies_and_others_as_before(variable, monkeypatch):
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    env = {variable: "corp.example, 10.0.0.1"}
    for name, value in (env | PROXIES | bypass_proxies(env, "10.0.0.7")).items():
        monkeypatch.setenv(name, value)
    for host in ("127.0.0.1", "localhost", "::1", "corp.example", "10.0.0.1", "10.0.0.7"):
        assert proxy_bypass(host), host
    assert not proxy_bypass("10.0.0.2")
    with httpx.Client() as client:
        patterns = {pattern.pattern for pattern, transport in client._mounts.items() if transport is None}
    assert {"all://127.0.0.1", "all://localhost", "all://[::1]", "all://*corp.example"} <= patterns


def test_proxies_that_are_off_for_all_stay_so():
    assert bypass_proxies({"NO_PROXY": "*"})["no_proxy"] == "*"


def test_the_reason_of_a_failure_is_found_in_its_output():
    trace = (
        b"Traceback (most recent call last):\n  File x\nsqlalchemy.exc.OperationalError: (sqlite3) no\n(Background)\n"
    )
    assert failure_reason(trace + b"Application startup failed. Exiting.\n") == (
        "sqlalchemy.exc.OperationalError: (sqlite3) no"
    )
    assert failure_reason(b"INFO: x\nERROR:    [Errno 99] cannot assign\n\n") == "[Errno 99] cannot assign"
    assert failure_reason(b"Killed\n") == "Killed" and failure_reason(b"") == "it wrote nothing"


def test_passwords_are_left_out():
    assert without_password("http://me:secret@host:1/api") == "http://host:1/api"


@pytest.mark.slow
@pytest.mark.parametrize("command", [("run",), ("serve",)])
def test_a_dead_address_is_named_with_the_variable(command, tmp_path):
    url = f"http://127.0.0.1:{free_port()}/api"
    code, lines = self_train(tmp_path, *command, PREFECT_API_URL=url.replace("://", "://me:secret@"))
    assert code == 2 and f"PREFECT_API_URL: found {url} (from the environment)" in lines[-1], lines
    assert "Connection refused" in lines[-1] and "secret" not in lines[-1]


@pytest.mark.slow
def test_an_address_that_never_answers_is_named_with_the_profile(tmp_path):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/api"
        profile(tmp_path / "prefect", url)
        code, lines = self_train(tmp_path, "run", **PROXIES)
    assert code == 2 and f"found {url} (from the profile 'team' of " in lines[-1] and "timed out" in lines[-1], lines


@pytest.mark.slow
def test_a_server_that_answers_byte_by_byte_is_not_waited_for(tmp_path):
    def trickle(server: socket.socket) -> None:
        with suppress(OSError):
            connection, _ = server.accept()
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
            while True:
                connection.sendall(b"x")
                time.sleep(1)

    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        threading.Thread(target=trickle, args=(server,), daemon=True).start()
        url = f"http://127.0.0.1:{server.getsockname()[1]}/api"
        code, lines = self_train(tmp_path, "run", PREFECT_API_URL=url)
    assert code == 2 and f"found {url} (from the environment)" in lines[-1] and "not complete in time" in lines[-1]


@pytest.mark.slow
def test_an_address_behind_a_dead_proxy_names_the_proxy(tmp_path):
    code, lines = self_train(tmp_path, "run", PREFECT_API_URL="http://10.9.8.7:4200/api", HTTP_PROXY=DEAD)
    assert code == 2 and f"through the proxy {DEAD} of HTTP_PROXY; NO_PROXY=10.9.8.7" in lines[-1], lines


@pytest.mark.slow
def test_a_file_of_settings_is_named(tmp_path):
    url = f"http://127.0.0.1:{free_port()}/api"
    (tmp_path / "prefect.toml").write_text(f'[api]\nurl = "{url}"\n')
    code, lines = self_train(tmp_path, "run")
    assert code == 2 and f"found {url} (from {tmp_path / 'prefect.toml'})" in lines[-1], lines


@pytest.mark.slow
@pytest.mark.parametrize("command", [("run",), ("up", "--port", "0")])
def test_a_home_that_cannot_be_written_is_named(command, tmp_path):
    (tmp_path / "prefect").write_text("")
    command = tuple(word if word != "0" else str(free_port()) for word in command)
    code, lines = self_train(tmp_path, *command)
    assert code == 2 and f"PREFECT_HOME: found {tmp_path / 'prefect'}" in lines[-1], lines
    assert "Not a directory" in lines[-1]


@pytest.mark.slow
@pytest.mark.parametrize("broken", ["profile", "long"])
def test_settings_that_cannot_be_read_are_one_line(broken, tmp_path):
    """Prefect prints a line of its own on import."""
    home = tmp_path / ("a" * 300 if broken == "long" else "prefect")
    if broken == "profile":
        home.mkdir()
        (home / "profiles.toml").write_text('active = "x')
    code, lines = self_train(tmp_path, "run", PREFECT_HOME=str(home))
    assert code == 2 and len(lines) == 1 and lines[0].startswith("self-train: error: Prefect's settings"), lines


@pytest.mark.slow
def test_an_empty_home_is_the_default_one(tmp_path):
    """Prefect would take it for the working folder, and keep its database there."""
    (tmp_path / "me").write_text("")  # so that the default one is named
    code, lines = self_train(tmp_path, "run", PREFECT_HOME="", HOME=str(tmp_path / "me"))
    assert code == 2 and f"PREFECT_HOME: found {tmp_path}/me/.prefect" in lines[-1], lines
    assert [path.name for path in tmp_path.iterdir()] == ["me"]


def database(url: str, home: Path) -> SimpleNamespace:
    connection = SimpleNamespace(connection_url=SecretStr(url) if url else None)
    return SimpleNamespace(home=home, server=SimpleNamespace(database=connection))


def test_a_database_that_cannot_be_used_is_named_before_a_server_is_started(tmp_path):
    file = tmp_path / "prefect.db"
    check_database(database("", tmp_path))  # a new one
    with closing(sqlite3.connect(file)) as there:
        there.execute("CREATE TABLE runs (name)")
        there.execute("BEGIN EXCLUSIVE")  # as another server may
        check_database(database(f"sqlite+aiosqlite:///{file}", tmp_path))
    check_database(database("sqlite+aiosqlite:///:memory:", tmp_path))
    file.write_bytes(b"no database" * 1000)
    for url in ("", f"sqlite+aiosqlite:///{file}"):
        with pytest.raises(InputError, match=rf"found {file}, which .*file is not a database"):
            check_database(database(url, tmp_path))
    dead = f"postgresql+asyncpg://me:secret@127.0.0.1:{free_port()}/prefect"
    with pytest.raises(InputError, match=r"found 127\.0\.0\.1, which .*Connection refused") as raised:
        check_database(database(dead, tmp_path))
    assert "secret" not in str(raised.value)


@pytest.mark.slow
def test_a_server_that_ends_at_its_start_says_why(tmp_path):
    code, lines = self_train(
        tmp_path, "run", PREFECT_SERVER_DATABASE_CONNECTION_URL=f"sqlite+aiosqlite:///{tmp_path}/none/x.db"
    )
    assert code == 1 and "ended at its start: " in lines[-1] and "unable to open database file" in lines[-1], lines


@pytest.mark.slow
def test_an_output_folder_that_cannot_be_written_is_named_before_anything_is_started(tmp_path):
    (tmp_path / "runs").write_text("")
    code, lines = self_train(tmp_path, "run", "--out", "runs/demo")
    assert code == 2 and lines == [
        f"self-train: error: out: {tmp_path / 'runs'}: is, or is below, a file; want a folder"
    ]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_run_with_its_own_server_needs_no_proxy(tmp_path):
    out = tmp_path / "run"
    command = [*run_command(out), "--set", "demo=null"]  # which is refused in the flow, with the server up
    env = environment(tmp_path / "prefect", **PROXIES)
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2 and "data.manifest" in done.stderr, done.stdout + done.stderr
