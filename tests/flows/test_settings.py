"""What the flow decides before anything runs: chunks of shards, seeds, and recipes that lack something."""

from __future__ import annotations

import socket

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from prefect.exceptions import ParameterTypeError
from prefect.logging import disable_run_logger
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows import cli as flow_cli
from flows import stages
from flows.job_builder import chunks, job_builder
from flows.local_server import LocalServer
from flows.preflight import check_machine
from flows.rounds import one_round
from flows.run_progress import run_titles
from flows.self_train import self_train
from flows.stage_flow import chosen_config
from flows.subprocess_jobs import VISIBLE
from pipeline.config import SelfTrainConfig
from pipeline.config.recipes import load_recipe
from pipeline.errors import InputError
from pipeline.execution import folder_lock as alone
from pipeline.runs.layout import RunLayout
from pipeline.runs.preflight import file_problems, input_problems, recipe_problems, refuse, set_problems
from pipeline.stages.jobs import TrainModel
from tests.fixtures.alone import holding
from tests.pipeline.runs.test_preflight import model_folder


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
        (["teacher.mixture={detection: 1, grounding: 1, attributes: 1, pseudo: 1}"], "teacher.mixture: `pseudo` are"),
        (
            ["student.first_steps=1", "student.first_mixture={other: 1}"],
            r"student\.first_mixture .'other': 1.*: want shares",
        ),
        (["teacher.first_mixture={}"], r"teacher\.first_mixture"),
        (
            ["student.last_steps=5", "student.last_mixture={other: 1}"],
            r"student\.last_mixture .'other': 1.*: want shares",
        ),
        (["student.last_steps=900", "student.last_mixture={detection: 1}"], r"student\.last_steps: found 900 of 500"),
        (
            ["student.mixture={detection: 1, grounding: 1, attributes: 1}"],
            "student.mixture: found detection, grounding, attributes without `pseudo`.*pseudo: 1",
        ),
        (["demo=null"], r"data\.manifest"),
        (["promotion.gates=[ap]"], r"gate 'ap': want SET\.METRIC"),
        (
            ["promotion.gates=[evl_base.ap>0]"],
            r"'evl_base\.ap > 0' fits no evaluation set \(did you mean eval_base\?\)",
        ),
        (
            ["promotion.gain=eval_nvel.ap"],
            r"gain: 'eval_nvel\.ap' is of no evaluation set \(did you mean eval_novel\?\)",
        ),
        (
            ["data.frequencies={lvis: f.json}"],
            r"data\.frequencies: lvis is no evaluation set; there are \['eval_base', 'eval_novel'\]",
        ),
    ],
)
def test_a_recipe_that_lacks_something_is_refused_before_anything_runs(changes, words):
    with pytest.raises(InputError, match=words):
        refuse(input_problems(load_recipe("demo", changes)))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            "data.novel=eval_nuvel",
            r"evaluation sets of data: .*demo\.yaml has no labelled set 'eval_nuvel' \(did you mean eval_novel\?\)",
        ),
        ("data.sources=[detection, crawl, grounding]", r"data\.sources: .* has no labelled set 'crawl' \("),
    ],
)
def test_sets_that_the_manifest_has_not_are_told_before_anything_runs(change, words):
    with pytest.raises(InputError, match=words):
        refuse(set_problems(load_recipe("demo", [change])))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("data.crawl=[CRAWL/00001.tar]", r"00001\.tar"),
        ("data.frequencies={eval_base: CRAWL/f.json}", r"data\.frequencies: eval_base: .*f\.json: no such file"),
        ("data.gold=CRAWL/gold", r"gold"),
    ],
)
def test_files_that_are_opened_days_later_are_asked_for_before_anything_runs(change, words, tmp_path):
    (tmp_path / "00000.tar").write_bytes(b"")
    recipe = ["demo=null", "data.manifest=m.yaml", f"data.crawl=[{tmp_path}/00000.tar]"]
    refuse(file_problems(load_recipe("demo", recipe)))
    with pytest.raises(InputError, match=words):
        refuse(file_problems(load_recipe("demo", [*recipe, change.replace("CRAWL", str(tmp_path))])))


def test_more_gpus_than_there_are_and_a_cluster_without_a_server_are_refused_before_anything_runs(monkeypatch):
    monkeypatch.setenv(VISIBLE, "0,1")
    check_machine(load_recipe("demo", ["resources.device=cuda", "resources.gpus=2"]))
    with pytest.raises(InputError, match=r"resources\.gpus: a job wants 3 GPUs, and there are 2 on"):
        check_machine(load_recipe("demo", ["resources.device=cuda", "resources.gpus=3"]))
    with (
        temporary_settings(restore_defaults={PREFECT_API_URL}),
        pytest.raises(InputError, match="PREFECT_API_URL is not set"),
    ):
        check_machine(load_recipe("demo", ["resources.cluster=local"]))


def test_the_demo_is_not_run_in_the_folder_of_a_run_on_real_data(tmp_path):
    """A forgotten recipe is the demo's, and would train its teacher in the place of the other."""
    real = load_recipe("demo", ["demo=null", "data.manifest=m.yaml", "data.crawl=[crawl]"])
    job_builder(str(tmp_path / "run"), real)
    before = (tmp_path / "run" / "config.yaml").read_bytes()
    with pytest.raises(
        InputError, match=r"run: found a run on real data, but this recipe is the demo's; want .*config\.yaml"
    ):
        job_builder(str(tmp_path / "run"), load_recipe("demo"))
    assert (tmp_path / "run" / "config.yaml").read_bytes() == before
    job_builder(
        str(tmp_path / "run"), load_recipe("demo", ["demo=null", "data.manifest=other.yaml", "data.crawl=[more]"])
    )
    job_builder(str(tmp_path / "demo"), load_recipe("demo"))
    with pytest.raises(InputError, match=r"demo: found a run on the demo, but this recipe is real data's"):
        job_builder(str(tmp_path / "demo"), real)


@pytest.mark.parametrize("rounds", [0, -1])
def test_no_round_at_all_is_refused_as_in_the_recipe(rounds):
    with pytest.raises(ParameterTypeError, match="greater than or equal to 1"):
        self_train.validate_parameters({"rounds": rounds})
    assert self_train.parameters.model_dump()["properties"]["rounds"]["anyOf"][0]["minimum"] == 1


def test_a_round_of_its_own_asks_for_the_same(tmp_path):
    with pytest.raises(InputError, match=r"gate 'ap': want SET\.METRIC"):
        one_round.fn(str(tmp_path / "run"), load_recipe("demo", ["promotion.gates=[ap]"]))
    assert not (tmp_path / "run").exists()


def test_a_run_in_a_bucket_is_refused_and_no_folder_made(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"^s3://bucket/run: a run wants a folder on a file system"):
        job_builder("s3://bucket/run", load_recipe("demo"))
    assert not list(tmp_path.iterdir())


def test_a_stage_of_its_own_does_not_change_the_settings_of_a_run_that_goes_on(tmp_path, monkeypatch):
    job_builder(str(tmp_path / "run"), load_recipe("demo"))
    before = (tmp_path / "run" / "config.yaml").read_bytes()
    monkeypatch.setattr(alone, "PATIENCE", 1)
    with holding(tmp_path / "run") as pid, disable_run_logger():
        with pytest.raises(InputError, match=rf"run: another run works there \(process {pid} on "):
            stages.filter_boxes.fn(str(tmp_path / "run"), load_recipe("demo", ["filter_boxes.threshold=0.9"]))
    assert (tmp_path / "run" / "config.yaml").read_bytes() == before


def test_stages_take_what_they_took_whatever_holds_their_folder():
    assert list(stages.evaluate.parameters.properties) == ["out", "config", "models", "recipe"]
    assert stages.pseudo_label.flow_run_name == "pseudo-label-round-{round_number}"


def test_the_demo_recipe_is_whole(tmp_path):
    refuse(recipe_problems(load_recipe("demo"), RunLayout(tmp_path)))


def test_the_run_form_has_the_recipes_fields_with_help():
    schema = self_train.parameters.model_dump()
    assert {"out", "config", "rounds", "recipe"} == set(schema["properties"])
    definitions = schema["definitions"]
    assert definitions["TrainConfig"]["properties"]["steps"]["description"] == "optimiser steps"
    assert definitions["SelfTrainConfig"]["additionalProperties"] is False


def test_a_server_on_an_address_of_the_sixth_version_has_urls(tmp_path):
    server = LocalServer("::1", 4300, 1, tmp_path / "logs", tmp_path / "runs")
    assert (server.url, server.pages) == ("http://[::1]:4300", "http://[::1]:4301")
    assert not server.healthy()


@pytest.mark.parametrize(("host", "near"), [("0.0.0.0", "127.0.0.1"), ("::", "[::1]")])
def test_a_server_for_all_addresses_is_told_of_by_name_and_found_by_loopback(tmp_path, host, near):
    server = LocalServer(host, 4300, 1, tmp_path / "logs", tmp_path / "runs")
    assert server.url == f"http://{socket.gethostname()}:4300" == server.environment["PREFECT_UI_URL"]
    assert server.pages == f"http://{socket.gethostname()}:4301"
    assert server.environment["PREFECT_API_URL"] == f"http://{near}:4300/api"


def test_settings_written_with_a_run_load_as_they_were(tmp_path):
    config = load_recipe("demo", ["rounds=2"])
    job_builder(str(tmp_path), config)
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
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(23)), raising=False)
    maker = job_builder(str(tmp_path), load_recipe("demo", ["resources.device=cuda", *changes]))
    train = maker.training("t", "train-teacher", maker.config.teacher, {"a": ["0.tar"]}, tmp_path / "t", init=None)
    assert isinstance(train.job, TrainModel) and train.job.data_workers == workers


def test_trainings_at_a_time_share_the_cores_among_their_readers(tmp_path, monkeypatch):
    monkeypatch.setenv(VISIBLE, "0,1")
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(12)), raising=False)
    maker = job_builder(str(tmp_path), load_recipe("demo", ["resources.device=cuda", "resources.parallel=2"]))
    jobs = [
        maker.training(n, "train-student", maker.config.student, {"a": ["0.tar"]}, tmp_path / n, init=None, together=2)
        for n in ("student", "control")
    ]
    assert [job.job.data_workers for job in jobs if isinstance(job.job, TrainModel)] == [6, 6]


def test_the_control_has_the_teachers_mixture_in_its_unit_and_no_pseudo_labels():
    config = load_recipe(
        "demo",
        ["student.mixture_unit=copies", "student.first_steps=9", "student.first_mixture={pseudo: 1, detection: 2}"],
    )
    control = stages.control_settings(config.student, config.teacher)
    assert (control.mixture, control.mixture_unit) == (config.teacher.mixture, "shares")
    assert (control.first_steps, control.first_mixture) == (9, {"detection": 2})
    config = load_recipe("demo", ["student.last_steps=5", "student.last_mixture={pseudo: 1, detection: 1}"])
    control = stages.control_settings(config.student, config.teacher)
    assert (control.last_steps, control.last_mixture) == (5, {"detection": 1})
    config = load_recipe("demo", ["student.first_steps=9", "student.first_mixture={pseudo: 1}"])
    assert stages.control_settings(config.student, config.teacher).first_steps == 0
    plain = load_recipe("demo")
    assert stages.control_settings(plain.student, plain.teacher) == plain.student.model_copy(
        update={"mixture": plain.teacher.mixture}
    )


def test_a_recipe_in_place_of_settings_is_a_name_or_a_file(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("seed: 7\n")
    demo = load_recipe("demo")
    assert chosen_config(demo, None, demo) is demo
    assert chosen_config(demo, str(file), demo).seed == 7
    assert chosen_config(demo, "own", demo) == load_recipe("own")
    with pytest.raises(InputError, match="recipe: found own and a config of other settings"):
        chosen_config(load_recipe("demo", ["seed=1"]), "own", demo)


def test_a_control_of_a_teacher_without_a_mixture_learns_the_students_human_share():
    config = load_recipe("own", ["student.mixture={boxes: 2, pseudo: 6}", "student.mixture_unit=copies"])
    control = stages.control_settings(config.student, config.teacher)
    assert (control.mixture, control.mixture_unit) == ({"boxes": 2}, "copies")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("student.accumulate=3", r"student\.batch_size: found 8, which 1 processes times accumulate 3 cannot share"),
        ("student.precision=fp16", r"student\.precision: found fp16 on a CPU"),
        ("resources.cluster=ray://head:10001", r"resources\.device: found auto with resources\.cluster"),
    ],
)
def test_a_training_that_does_not_fit_the_machine_is_refused(change, words, monkeypatch):
    monkeypatch.setenv(VISIBLE, "")
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:1/api"}), pytest.raises(InputError, match=words):
        check_machine(load_recipe("own", [change]))


def test_check_prints_the_plan_or_a_line_for_each_wrong_path(tmp_path):
    (tmp_path / "crawl").mkdir()
    (tmp_path / "crawl" / "00000.tar").write_bytes(b"x" * 1000)
    glip = model_folder(tmp_path / "glip")
    out = tmp_path / "run"
    given = ["--recipe", "own", "--set", f"teacher.init={glip}", "--set", "resources.device=cpu", "--out", str(out)]
    done = CliRunner().invoke(flow_cli.check, [*given, "--set", f"data.crawl={tmp_path}/crawl"])
    assert done.exit_code == 0 and done.output.endswith("nothing is missing\n"), done.output
    assert f"teacher:  as it is, from {glip}" in done.output and "train-student-1       2,000 steps" in done.output
    wrong = CliRunner().invoke(flow_cli.check, [*given, "--set", "data.crawl=[a.tar, b.tar]", "--set", "data.gold=c"])
    assert wrong.exit_code == 2 and len(wrong.output.splitlines()) == 3
    run = CliRunner().invoke(flow_cli.run, [*given, "--set", "data.crawl=[a.tar, b.tar]", "--set", "data.gold=c"])
    assert (run.exit_code, run.output) == (2, wrong.output)
    assert not out.exists()


@pytest.mark.parametrize(
    ("recipe", "changes", "titles"),
    [
        ("own", ["teacher.init=x.pth"], [
            "parse-phrases", "convert-checkpoint", "pseudo-label-round-1", "filter-boxes-round-1",
            "build-shards-round-1", "train-student-round-1",
        ]),
        ("own", ["teacher.init=x", "data.names=dog"], [
            "pseudo-label-round-1", "filter-boxes-round-1", "build-shards-round-1", "train-student-round-1",
        ]),
        ("demo", ["demo={photos: false}"], [
            "make-demo-data", "ingest", "parse-phrases", "train-teacher", "evaluate-teacher", "pseudo-label-round-1",
            "filter-boxes-round-1", "build-shards-round-1", "train-student-round-1", "evaluate-control-1",
        ]),
    ],
)  # fmt: skip
def test_a_runs_progress_is_over_the_stages_that_it_has(recipe, changes, titles):
    assert run_titles(load_recipe(recipe, changes)) == titles
