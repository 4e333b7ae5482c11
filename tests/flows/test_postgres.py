"""A stage flow against a team's server: PostgreSQL behind one server, and PostgreSQL and Redis behind several."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys
import textwrap
from contextlib import ExitStack
from pathlib import Path

import pytest

from pipeline.config.recipes import load_recipe
from pipeline.io.hashing import digest_file
from pipeline.stages.jobs import ParsePhrases
from tests.fixtures.crawl import write_crawl
from tests.fixtures.servers import (
    PREFECT,
    ROOT,
    PrefectServer,
    environment,
    postgres,
    prefect_server,
    redis,
    started,
    wait_for,
)
from tests.flows.api import ask

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(
        shutil.which("initdb") is None or shutil.which("postgres") is None,
        reason="PostgreSQL's server programs (initdb, postgres) are not on PATH",
    ),
]

STAGE = """
import json, sys
from flows.stages import parse_phrases
from pipeline.config.recipes import load_recipe
out, *shards = sys.argv[1:]
config = load_recipe("demo", [
    "demo=null", f"data.crawl={json.dumps(shards)}",
    "resources.chunk_shards=1", "resources.parallel=2", "resources.threads=1",
])
print(parse_phrases(out, config).model_dump_json())
"""


@pytest.fixture(scope="module")
def crawl(tmp_path_factory) -> list[str]:
    return write_crawl(tmp_path_factory.mktemp("crawl"))


@pytest.fixture(scope="module")
def quiet(crawl, tmp_path_factory) -> dict[str, str]:
    """Digests of what the stage writes without any flow, by name."""
    out = tmp_path_factory.mktemp("quiet")
    ParsePhrases(settings=load_recipe("demo").parse_phrases, shards=crawl, out=out).run()
    return digests(out)


def digests(folder: Path) -> dict[str, str]:
    return {p.name: digest_file(p) for p in sorted(folder.iterdir()) if not p.name.startswith(".")}


def start_stage(server: PrefectServer, out: Path, crawl: list[str]) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", textwrap.dedent(STAGE), str(out), *crawl]
    return subprocess.Popen(
        command, env=server.env, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(process: subprocess.Popen[str]) -> dict:
    said, errors = process.communicate(timeout=300)
    assert process.returncode == 0, said + errors
    return json.loads(said.strip().splitlines()[-1])


def names_of(api: str, kind: str, state: str = "COMPLETED") -> list[str]:
    wanted = {"limit": 200, kind: {"state": {"type": {"any_": [state]}}}}
    return sorted(r["name"] for r in ask("POST", f"{api}/{kind}/filter", wanted))


def count_rows(url: str, table: str) -> int:
    """Of one of Prefect's tables, asked of PostgreSQL itself."""
    import asyncpg

    async def ask() -> int:
        connection = await asyncpg.connect(url.replace("+asyncpg", ""))
        try:
            return await connection.fetchval(f"SELECT count(*) FROM {table}")
        finally:
            await connection.close()

    return asyncio.run(ask())


JOBS = ["parse-phrases-000", "parse-phrases-001"]


def test_a_stage_runs_on_postgresql(crawl, quiet, tmp_path):
    with (
        postgres() as url,
        prefect_server(tmp_path / "home", PREFECT_API_DATABASE_CONNECTION_URL=url) as server,
    ):
        report = finish(start_stage(server, tmp_path / "run", crawl))
        assert report["done"] == 2 and report["tallies"]["samples"]["kept"] > 0
        assert digests(tmp_path / "run" / "phrases") == quiet
        wait_for(lambda: names_of(server.api, "task_runs") == JOBS, 60, "the task runs' record")  # seconds late
        assert names_of(server.api, "flow_runs") == ["parse-phrases"]
        assert count_rows(url, "task_run") == 2 and count_rows(url, "artifact") >= 2
        assert not list((tmp_path / "home").rglob("*.db"))
        password = url.split(":")[2].split("@")[0]
        assert password not in server.log.read_text()


@pytest.mark.skipif(shutil.which("redis-server") is None, reason="redis-server is not on PATH")
def test_two_servers_share_postgresql_and_redis(crawl, quiet, tmp_path):
    pytest.importorskip("prefect_redis", reason="the extra `redis` is not installed")
    with ExitStack() as stack:
        enter = stack.enter_context
        url, queue = enter(postgres(200)), enter(redis(tmp_path))
        settings = {
            "PREFECT_API_DATABASE_CONNECTION_URL": url,
            "PREFECT_MESSAGING_BROKER": "prefect_redis.messaging",
            "PREFECT_MESSAGING_CACHE": "prefect_redis.messaging",
            "PREFECT_SERVER_EVENTS_CAUSAL_ORDERING": "prefect_redis.ordering",
            "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect_redis.lease_storage",
            "PREFECT_REDIS_MESSAGING_URL": queue,
            "PREFECT_SERVER_DOCKET_URL": queue,
        }
        first = enter(prefect_server(tmp_path / "a", services=False, **settings))
        settings["PREFECT_API_DATABASE_MIGRATE_ON_START"] = "false"  # the first has done it
        second = enter(prefect_server(tmp_path / "b", services=False, **settings))
        services = [PREFECT, "server", "services", "start"]
        enter(
            started(
                services, tmp_path / "services.log", env=environment(tmp_path / "services", **settings), cwd=tmp_path
            )
        )

        runs = [tmp_path / "run-a", tmp_path / "run-b"]
        working = [start_stage(server, out, crawl) for server, out in zip((first, second), runs, strict=True)]
        assert [finish(process)["done"] for process in working] == [2, 2]
        assert all(digests(out / "phrases") == quiet for out in runs)
        for server in (first, second):  # each knows what went through the other
            wait_for(lambda: names_of(server.api, "task_runs") == sorted(JOBS * 2), 60, "the task runs' record")  # noqa: B023
            assert names_of(server.api, "flow_runs") == ["parse-phrases"] * 2
        first.process.kill()  # one of them dies; the other goes on
        first.process.wait()
        assert finish(start_stage(second, tmp_path / "run-a", crawl))["skipped"] == 2
        wait_for(lambda: len(names_of(second.api, "task_runs")) == 6, 60, "the task runs' record")
