"""A shard that cannot be read is excluded: its neighbours go on, and the run says what it lost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.config import SelfTrainConfig
from tests.flows.tiny import BIN, ROOT, environment, tiny_config

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

RUN = """
import json, sys
from pipeline.config import SelfTrainConfig
from flows.self_train import self_train
config = SelfTrainConfig.model_validate_json(open(sys.argv[2]).read())
state = self_train(sys.argv[1], config, return_state=True)
print("STATE", json.dumps([state.type.value, state.name, state.message]))
"""


def smaller() -> SelfTrainConfig:
    """The tiny recipe without what loses no shard of the crawl: the control and the photographs."""
    config = tiny_config()
    assert config.demo is not None
    return config.model_copy(update={"control": False, "demo": config.demo | {"photos": False}})


def run(out: Path, env: dict[str, str], max_failed: int) -> tuple[str, str, str]:
    config = smaller()
    resources = config.resources.model_copy(update={"max_failed": max_failed})
    config = config.model_copy(update={"resources": resources})
    settings = out.with_suffix(f".{max_failed}.json")
    settings.write_text(config.model_dump_json())
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(out), str(settings)], env=env, cwd=ROOT, capture_output=True, text=True
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("STATE ")]
    assert lines, done.stdout[-2000:] + done.stderr[-4000:]
    return tuple(json.loads(lines[-1].removeprefix("STATE ")))


def test_a_broken_shard_is_set_aside_within_the_stated_limit(tmp_path):
    out, env = tmp_path / "run", environment(tmp_path / "prefect")
    command = [sys.executable, "-m", "pipeline", "make-demo-data", "--out", str(out / "data"), "--quiet"]
    config = smaller()
    assert config.demo is not None
    for name, value in {"seed": config.seed, **config.demo}.items():
        command += ["--set", f"{name}={json.dumps(value)}"]
    subprocess.run(command, check=True, cwd=ROOT)
    shards = sorted((out / "data" / "crawl").glob("*.tar"))
    shards[1].write_bytes(b"no archive")
    kind, _, words = run(out, env, max_failed=0)
    assert kind == "FAILED" and "1 shards failed" in words and shards[1].stem in words
    kind, name, words = run(out, env, max_failed=1)
    assert (kind, name) == ("COMPLETED", "Completed with losses")
    assert "parse-phrases excluded 1 shards" in words
    summary = json.loads((out / "summary.json").read_text())
    failed = summary["stages"]["parse-phrases"]["report"]["failed"]
    assert [f["shard"] for f in failed] == [shards[1].stem] and "not a tar archive" in failed[0]["error"]
    built = {p.name for p in (out / "pseudo" / "round-1").glob("pseudo-*.tar")}
    assert built == {f"pseudo-{s.stem}.tar" for s in shards if s != shards[1]}
    status = subprocess.run(
        [str(BIN / "self-train"), "status", "--out", str(out)], capture_output=True, text=True, env=os.environ
    )
    assert f"{len(shards) - 1} of {len(shards)} shards" in status.stdout and "index.html" in status.stdout
