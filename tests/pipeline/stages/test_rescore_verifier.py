"""rescore --verifier: real tiny vision-language models answer for stored regions; one row in, one row out."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from pipeline.annotators.verifier import load_verifier
from pipeline.annotators.verifier_questions import ImageQuestions
from pipeline.cli import app as cli
from pipeline.config import FilterConfig, RescoreConfig, VerifierConfig
from pipeline.data.images import open_image
from pipeline.data.records import ANSWERED, LABELS, MORE, REGIONS
from pipeline.errors import InputError, RunError
from pipeline.filtering.rules import EXTRA_RULES, FilterRule
from pipeline.io.hashing import digest_file
from pipeline.io.tables import footer, read_table
from pipeline.io.tars import read_tar, write_tar
from pipeline.stages.jobs import FilterBoxes, Rescore, read_job, write_job
from tests.fixtures import teachers, verifiers
from tests.fixtures.crawl import jpeg
from tests.fixtures.regions import region, table_of, write
from tests.pipeline.annotators.test_http import Endpoint
from tests.pipeline.annotators.test_verifier import first_token

ROWS = [
    region(score=0.9, box=(5, 5, 50, 40)),
    region(score=0.6, box=(40, 30, 90, 95), rank=1),
    region(score=0.2, box=(1, 1, 9, 9), rank=2),
    region(phrase="red car", phrase_row=1, start=5, end=12, score=0.3, box=(20, 20, 80, 60)),
    region(phrase="red car", phrase_row=1, start=5, end=12, score=0.4, box=(20, 10, 80, 60)),
    region(key="b", phrase="old tree", phrase_row=2, end=8, box=(10.5, 0, 100, 99.5)),
    region(key="broken", phrase="cat", phrase_row=3, box=(10, 10, 60, 60)),
]


def config(**verifier) -> RescoreConfig:
    return RescoreConfig(verifier=VerifierConfig(**({"batch_size": 3, "crop_side": 32} | verifier)))


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("verifiers")
    return {name: getattr(verifiers, name)(root / name) for name in ("qwen2_vl", "idefics3")}


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    """crawl/ and regions/ of a shard with two images, and one that is broken."""
    root = tmp_path_factory.mktemp("store")
    (root / "crawl").mkdir()
    (root / "regions").mkdir()
    images = {"a": jpeg(1, (100, 100)), "b": jpeg(2, (100, 100)), "broken": jpeg(3, (100, 100))[:200]}
    write_tar(root / "crawl/00000.tar", ((key, {"jpg": data}) for key, data in images.items()))
    write(root / "regions/00000.parquet", table_of(ROWS))
    return root


def verify(root: Path, verifier: Path, out: Path, settings: RescoreConfig, **options):
    job = Rescore(
        settings=settings, shards=root / "crawl", regions=root / "regions", verifier=verifier, out=out, **options
    )
    return job.run()


def column(out: Path, name: str = "verifier") -> list[float | None]:
    return read_table(out / "00000.parquet", REGIONS, optional=None)[name].to_pylist()


@pytest.mark.parametrize("name", ["qwen2_vl", "idefics3"])
def test_every_region_and_phrase_has_the_answer_to_its_question(store, folders, tmp_path, name):
    wanted_config = config(exhaustive=True, question="Is {phrase} in the box?", more_question="More of {phrase}?")
    report = verify(store, folders[name], tmp_path, wanted_config)
    table = read_table(tmp_path / "00000.parquet", ANSWERED.append(MORE))
    assert table.select(REGIONS.names).equals(read_table(store / "regions/00000.parquet", REGIONS))
    verifier = load_verifier(folders[name], wanted_config)
    samples = {sample.key: sample.files["jpg"] for sample in read_tar(str(store / "crawl/00000.tar"))}
    about = {key: ImageQuestions(open_image(samples[key]), wanted_config.verifier) for key in ("a", "b")}

    def boxes(*rows: int) -> np.ndarray:
        return np.array([[ROWS[i][c] for c in ("x1", "y1", "x2", "y2")] for i in rows], float)

    def alone(question) -> float:
        return verifier.predict(verifier.collate([question]))[0].score

    wanted = [alone(about[row["key"]].of_region(boxes(i)[0], row["phrase"])) for i, row in enumerate(ROWS[:6])]
    np.testing.assert_allclose(table["verifier"].to_pylist()[:6], wanted, atol=1e-4)
    dogs, cars, trees = (about["a"].of_more(boxes(0, 1), "dog"), about["a"].of_more(boxes(4), "red car"),
                         about["b"].of_more(boxes(5), "old tree"))  # fmt: skip
    assert dogs.text == "More of dog?" and dogs.crop is None
    more = [alone(dogs)] * 3 + [alone(cars)] * 2 + [alone(trees)]
    np.testing.assert_allclose(table["more"].to_pylist()[:6], more, atol=1e-4)
    assert table["verifier"][6].as_py() is table["more"][6].as_py() is None
    assert report.tallies["samples"].dropped == {"broken_image": 1}
    assert (report.tallies["scores"].kept, report.tallies["scores"].dropped) == (6, {"image_lost": 1})
    assert (report.tallies["phrases"].kept, report.tallies["phrases"].dropped) == (3, {"image_lost": 1})
    assert report.numbers["answers_unclear"] == 9  # random weights
    about_store = footer(table.schema)
    assert about_store["verifier"] == f"{name}@{verifier.revision}" and about_store["teacher"] == "glip@0123456789ab"
    assert json.loads(about_store["verifier_tokens"])["no"] == [" no", "no", "No"]
    assert VerifierConfig.model_validate_json(about_store["verifier_config"]) == wanted_config.verifier


def test_batches_do_not_matter_and_a_second_run_does_nothing(store, folders, tmp_path):
    for out, size in (("one", 1), ("all", 100)):
        verify(store, folders["qwen2_vl"], tmp_path / out, config(batch_size=size, exhaustive=True))
    for name in ("verifier", "more"):
        np.testing.assert_allclose(column(tmp_path / "one", name)[:6], column(tmp_path / "all", name)[:6], atol=1e-4)
    assert verify(store, folders["qwen2_vl"], tmp_path / "all", config(batch_size=100, exhaustive=True)).skipped == 1
    assert verify(store, folders["qwen2_vl"], tmp_path / "all", config(batch_size=100)).done == 1
    assert "more" not in read_table(tmp_path / "all/00000.parquet", REGIONS, optional=None).column_names
    verify(store, folders["qwen2_vl"], tmp_path / "again", config(batch_size=100), decoders=3)
    assert digest_file(tmp_path / "all/00000.parquet") == digest_file(tmp_path / "again/00000.parquet")
    assert verify(store, folders["idefics3"], tmp_path / "all", config(batch_size=100)).done == 1


def test_columns_of_scorer_and_verifier_stand_side_by_side(store, folders, tmp_path):
    clip = teachers.clip(tmp_path / "clip")
    shutil.copytree(store / "crawl", tmp_path / "crawl")
    scored = Rescore(shards=store / "crawl", regions=store / "regions", scorer=clip, out=tmp_path / "regions")
    scored.run()
    verify(tmp_path, folders["qwen2_vl"], tmp_path / "both", config(exhaustive=True))
    shutil.rmtree(tmp_path / "regions")
    (tmp_path / "both").rename(tmp_path / "regions")
    verify(tmp_path, folders["qwen2_vl"], tmp_path / "again", config())
    table = read_table(tmp_path / "again/00000.parquet", REGIONS, optional=None)
    assert table.column_names == [*REGIONS.names, "region_text", "verifier"]  # `more` was of earlier answers
    assert {"scorer", "verifier"} <= footer(table.schema).keys()


def test_settings_of_a_verifier_do_not_change_a_scorers_store(store, folders, tmp_path):
    clip = teachers.clip(tmp_path / "clip")
    inputs = {"shards": store / "crawl", "regions": store / "regions", "scorer": clip, "out": tmp_path / "out"}
    assert Rescore(**inputs).run().done == 1
    assert Rescore(**inputs, settings=config()).run().skipped == 1
    assert "verifier" not in RescoreConfig().model_dump() and config().model_dump()["verifier"]["crop_side"] == 32
    job = Rescore(**(inputs | {"scorer": None}), verifier=folders["qwen2_vl"], settings=config(exhaustive=True))
    write_job(tmp_path / "job.json", job)
    assert read_job(tmp_path / "job.json") == job


def test_filter_boxes_goes_by_the_verifier(store, folders, tmp_path):
    verify(store, folders["qwen2_vl"], tmp_path / "verified", config())
    answers = column(tmp_path / "verified")
    threshold = float(np.median(answers[:6]))
    rules = FilterConfig(score_by="verifier", threshold=threshold)
    FilterBoxes(regions=tmp_path / "verified", out=tmp_path / "labels", settings=rules).run()
    kept = read_table(tmp_path / "labels/00000.parquet", LABELS)["rank"].to_pylist()
    assert kept == [row["rank"] for row, p in zip(ROWS, answers, strict=True) if p is not None and p > threshold]
    assert kept


def test_a_rule_of_ones_own_drops_phrases_with_more_than_their_boxes(store, folders, tmp_path, monkeypatch):
    verify(store, folders["qwen2_vl"], tmp_path / "verified", config(exhaustive=True))
    more = column(tmp_path / "verified", "more")
    monkeypatch.setattr(EXTRA_RULES, "_registered", {})
    EXTRA_RULES.register("not_exhausted")(FilterRule(lambda pool, level: pool.shard.numbers("more") > level))
    dogs = more[0]
    rules = FilterConfig(threshold=0.1, extra_rules={"not_exhausted": dogs - 1e-6})
    FilterBoxes(regions=tmp_path / "verified", out=tmp_path / "labels", settings=rules).run()
    kept = read_table(tmp_path / "labels/00000.parquet", LABELS)["phrase"].to_pylist()
    assert (
        kept == [row["phrase"] for row, p in zip(ROWS, more, strict=True) if p is None or p < dogs]
        and "dog" not in kept
    )


def test_over_http_lost_answers_are_null_and_counted(store, tmp_path):
    endpoint, folder = Endpoint(), tmp_path / "endpoint"
    folder.mkdir()
    about = {"model_type": "http", "url": endpoint.url, "model": "m", "retries": 0, "concurrency": 3}
    (folder / "config.json").write_text(json.dumps(about))

    def reply(body):
        text = body["messages"][0]["content"][-1]["text"]
        if "old tree" in text:
            return 400, {}, {"error": "refused"}
        return 200, {}, first_token(("Yes", 0.6), ("no", 0.2)) if "dog" in text else first_token(("Hm", 0.9))

    endpoint.reply = reply
    try:
        with pytest.raises(RunError, match="4 of 7 regions lost"):
            verify(store, folder, tmp_path / "strict", config())
        settings = config(exhaustive=True).model_copy(update={"max_lost_share": 0.9})
        report = verify(store, folder, tmp_path / "out", settings)
    finally:
        endpoint.server.shutdown()
        endpoint.server.server_close()
    assert column(tmp_path / "out") == column(tmp_path / "out", "more") == [*[pytest.approx(0.75)] * 3, *[None] * 4]
    lost = {"answer_malformed": 2, "image_lost": 1, "request_refused": 1}
    assert (report.tallies["scores"].kept, report.tallies["scores"].dropped) == (3, lost)
    assert report.tallies["phrases"].dropped == {"answer_malformed": 1, "image_lost": 1, "request_refused": 1}
    notes = json.loads((tmp_path / "out/00000.report.json").read_text())["notes"]
    assert any(note.startswith("a: 5 questions without an answer; the first, of 'red car': answer") for note in notes)
    table = read_table(tmp_path / "out/00000.parquet", REGIONS, optional=None)
    assert footer(table.schema)["verifier"].startswith("http@") and "verifier_tokens" not in footer(table.schema)


def test_an_answer_that_is_no_number_is_lost(store, tmp_path):
    folder = verifiers.qwen2_vl(tmp_path / "nan")
    verifier = load_verifier(folder, config())
    verifier._model.lm_head.weight.data.fill_(torch.nan)
    verifier._model.save_pretrained(folder)
    with pytest.raises(RunError, match="7 of 7 regions lost"):
        verify(store, folder, tmp_path / "out", config())


def test_the_command(store, folders, tmp_path):
    inputs = ["--shards", str(store / "crawl"), "--regions", str(store / "regions"), "--out", str(tmp_path / "out")]
    options = ["--verifier", str(folders["qwen2_vl"]), "--set", "verifier.exhaustive=true"]
    done = CliRunner().invoke(cli.rescore, [*inputs, *options])
    assert done.exit_code == 0 and "1 shards done" in done.output and "answers_unclear" in done.output, done.output
    assert column(tmp_path / "out", "more")[0] is not None
    for chosen, found in (([], "neither --scorer nor"), ([*options, "--scorer", "clip"], "both --scorer and")):
        done = CliRunner().invoke(cli.rescore, [*inputs, *chosen])
        assert done.exit_code == 2 and f"found {found} --verifier; want one of them" in done.output
    without = verifiers.qwen2_vl(tmp_path / "without", words=("yes",))
    done = CliRunner().invoke(cli.rescore, [*inputs, "--verifier", str(without)])
    assert done.exit_code == 2 and f'{without}: found no single token for "no"' in done.output
    done = CliRunner().invoke(cli.rescore, [*inputs, *options, "--set", "verifier.question=this?"])
    assert done.exit_code == 2 and "want {phrase} and no other" in done.output
    with pytest.raises(InputError, match=r"no config\.json in it"):
        verify(store, tmp_path, tmp_path / "none", config())
