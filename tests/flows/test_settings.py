"""What the flow decides before anything runs: chunks of shards, seeds, and recipes that lack something."""

from __future__ import annotations

import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows.children import VISIBLE
from flows.local_server import LocalServer
from flows.self_train import check_inputs, self_train
from flows.stager import chunks, stager
from pipeline.config import SelfTrainConfig
from pipeline.errors import InputError
from pipeline.recipes import load_recipe
from pipeline.train_main import main as train_main


@given(count=st.integers(1, 60), size=st.integers(1, 20), parallel=st.integers(1, 8))
def test_chunks_hold_every_shard_once_in_order(count, size, parallel):
    shards = [str(i) for i in range(count)]
    parts = chunks(shards, size, parallel)
    assert [s for part in parts for s in part] == shards
    assert all(0 < len(part) <= size for part in parts)
    assert len(parts) >= min(parallel, count) or len(parts[0]) * parallel >= count


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["data.sources=[]"], r"data\.sources"),
        (["teacher.mixture={detection: 1, other: 1}"], r"teacher\.mixture names \['detection', 'other'\]"),
        (["student.mixture={detection: 1, grounding: 1, attributes: 1}"], "give `pseudo` a share"),
        (["demo=null"], r"data\.manifest"),
        (["promotion.gates=[ap]"], r"gate 'ap': want SET\.METRIC"),
        (
            ["data.frequencies={lvis: f.json}"],
            r"data\.frequencies: lvis is no evaluation set; there are \['eval_base', 'eval_novel'\]",
        ),
    ],
)
def test_a_recipe_that_lacks_something_is_refused_before_anything_runs(changes, words):
    with pytest.raises(InputError, match=words):
        check_inputs(load_recipe("demo", changes))


def test_the_demo_recipe_is_whole():
    check_inputs(load_recipe("demo"))


def test_the_run_form_has_the_recipes_fields_with_help():
    schema = self_train.parameters.model_dump()
    assert {"out", "config", "rounds"} == set(schema["properties"])
    definitions = schema["definitions"]
    assert definitions["TrainConfig"]["properties"]["steps"]["description"] == "optimiser steps"
    assert definitions["SelfTrainConfig"]["additionalProperties"] is False


@pytest.mark.parametrize(("host", "near"), [("0.0.0.0", "127.0.0.1"), ("::", "[::1]")])
def test_a_server_for_all_addresses_is_told_of_by_name_and_found_by_loopback(tmp_path, host, near):
    server = LocalServer(host, 4300, 1, tmp_path / "logs", tmp_path / "runs")
    assert server.url == f"http://{socket.gethostname()}:4300" == server.environment["PREFECT_UI_URL"]
    assert server.pages == f"http://{socket.gethostname()}:4301"
    assert server.environment["PREFECT_API_URL"] == f"http://{near}:4300/api"


def test_settings_written_with_a_run_load_as_they_were(tmp_path):
    config = load_recipe("demo", ["rounds=2"])
    stager(str(tmp_path), config)
    assert load_recipe(str(tmp_path / "config.yaml")) == config
    assert isinstance(config, SelfTrainConfig)


@pytest.mark.parametrize(
    ("changes", "workers"),
    [
        ([], 5),  # 23 cores for 4 processes
        (["resources.parallel=2", "resources.gpus=1"], 8),  # one process alone could have 23
        (["resources.train_processes=30"], 1),
        (["resources.data_workers=12"], 12),
        (["resources.data_workers=0"], 0),
        (["resources.device=cpu"], 0),
        (["resources.device=cpu", "resources.data_workers=3"], 3),
    ],
)
def test_a_trainings_processes_have_others_read_for_them(changes, workers, tmp_path, monkeypatch):
    monkeypatch.setenv(VISIBLE, "0,1,2,3")
    monkeypatch.setattr("os.cpu_count", lambda: 23)
    maker = stager(str(tmp_path), load_recipe("demo", ["resources.device=cuda", *changes]))
    train = maker.training("t", "train-teacher", maker.config.teacher, {"a": ["0.tar"]}, tmp_path / "t", init=None)
    at = train.command.index("--data-workers") if workers else None
    assert int(train.command[at + 1]) == workers if at else "--data-workers" not in train.command
    options = {option for parameter in train_main.params for option in parameter.opts}
    assert "--data-workers" in options  # what is started knows it


def test_trainings_at_a_time_share_the_cores_among_their_readers(tmp_path, monkeypatch):
    monkeypatch.setenv(VISIBLE, "0,1")
    monkeypatch.setattr("os.cpu_count", lambda: 12)
    maker = stager(str(tmp_path), load_recipe("demo", ["resources.device=cuda", "resources.parallel=2"]))
    jobs = [
        maker.training(n, "train-student", maker.config.student, {"a": ["0.tar"]}, tmp_path / n, init=None, together=2)
        for n in ("student", "control")
    ]
    assert [j.command[j.command.index("--data-workers") + 1] for j in jobs] == ["6", "6"]
