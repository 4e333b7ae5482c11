"""The evaluate stage on real shards with a small real network: every protocol, resumed, in
processes, and the commands on top."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from pipeline.annotators.base import load_annotator
from pipeline.cli import app as cli
from pipeline.config import EvaluateConfig
from pipeline.data.images import open_image
from pipeline.data.records import ClassPrompt, DatasetCard, GroundingRecord, Region
from pipeline.errors import InputError, RunError
from pipeline.evaluation.compare import compare
from pipeline.evaluation.evaluation_set import EvaluationSet
from pipeline.evaluation.label_qa import judge_labels
from pipeline.evaluation.match_tables import read_match_tables
from pipeline.evaluation.metrics import iou_matrix
from pipeline.evaluation.predictions import read_predictions
from pipeline.evaluation.protocols import class_chunks
from pipeline.execution.progress import Silent
from pipeline.inspection.evaluation_store import EvaluationStore
from pipeline.io.hashing import digest_file
from pipeline.io.tars import write_tar
from pipeline.report.evaluation import write_evaluation_page
from pipeline.stages.jobs import Evaluate
from tests.fixtures.annotators import predict_images
from tests.fixtures.crawl import jpeg

NAMES = ("car", "tree", "traffic light", "dog", "umbrella")
CAPTION = "a red car next to a small green tree"
CONFIG = EvaluateConfig(batch_size=3)
SIZES = [(80, 64), (64, 80), (80, 64), (96, 48), (80, 64)]  # (width, height)


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> dict[str, list[str]]:
    """A detection set of two shards (7 images), a federated one, and a set of captions."""
    folder = tmp_path_factory.mktemp("gold")

    def detection(i: int, dataset: str) -> GroundingRecord:
        width, height = SIZES[i % 5]
        present = {NAMES[i % 5], NAMES[(i + 1) % 5]}
        return GroundingRecord(
            key=f"{i:09d}", dataset=dataset, kind="detection", image_size=(height, width),
            regions=[Region(box=(5, 5 + n, 40, 40 + n), phrase=name) for n, name in enumerate(sorted(present))],
            verified_absent=tuple(sorted({NAMES[(i + 2) % 5]} - present)) if dataset == "federated" else None,
        )  # fmt: skip

    def caption(i: int) -> GroundingRecord:
        width, height = SIZES[i % 5]
        return GroundingRecord(
            key=f"{i:09d}", dataset="captions", kind="grounding", image_size=(height, width), caption=CAPTION,
            regions=(
                Region(box=(1, 1, 30, 30), phrase="a red car", tokens_positive=((0, 9),)),
                Region(box=(30, 1, 60, 30), phrase="a small green tree", tokens_positive=((18, 36),)),
                Region(box=(10, 20, 60, 40), phrase="a small green tree", tokens_positive=((18, 36),)),
            ),
        )  # fmt: skip

    def write(name: str, numbers: range, make) -> str:
        path = folder / f"{name}.tar"
        samples = ((f"{i:09d}", {"jpg": jpeg(i, SIZES[i % 5]), "json": make(i).to_json()}) for i in numbers)
        write_tar(path, samples)
        return str(path)

    for name in ("val", "federated"):
        card = DatasetCard(name=name, kind="detection", label_space=NAMES)
        (folder / f"{name}.dataset.json").write_text(card.model_dump_json())
    return {
        "val": [write("val-0", range(4), lambda i: detection(i, "val")),
                write("val-1", range(4, 7), lambda i: detection(i, "val"))],
        "federated": [write("federated-0", range(5), lambda i: detection(i, "federated"))],
        "captions": [write("captions-0", range(5), caption)],
    }  # fmt: skip


def run(shards, out, teacher, config=CONFIG, **options):
    return Evaluate(settings=config, model=str(teacher), sets=shards, out=out, **options).run()


def files(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): digest_file(p) for p in sorted(folder.rglob("*")) if p.is_file()}


def test_a_set_without_ground_truth_is_undefined_and_left_out(shards, teacher, tmp_path, caplog):
    """Its AP is null in metrics.json, said, and not counted in ODinW's mean nor compared."""
    empty = tmp_path / "empty-0.tar"
    record = GroundingRecord(key="0", dataset="empty", kind="detection", image_size=(64, 80), regions=[])
    write_tar(empty, [("0", {"jpg": jpeg(0, (80, 64)), "json": record.to_json()})])
    card = DatasetCard(name="empty", kind="detection", label_space=NAMES)
    (tmp_path / "empty.dataset.json").write_text(card.model_dump_json())
    config = CONFIG.model_copy(update={"protocols": {"wild": "odinw", "nothing": "odinw"}})
    sets = {"wild": shards["val"], "nothing": [str(empty)], "plain": [str(empty)]}
    for out in ("a", "b"):
        got = run(sets, tmp_path / out, teacher, config)
    saved = json.loads((tmp_path / "a" / "metrics.json").read_text())
    assert got["nothing"] == {"images": 1, "ap": None, "ap50": None, "ap75": None}
    assert saved["sets"]["plain"]["recall_at_1"] is None and saved["sets"]["plain"]["queries"] == 0
    assert saved["means"]["odinw"] == {"ap": got["wild"]["ap"], "sets": 1}
    assert "nothing: has no ground truth; its ap, ap50, ap75 are undefined and left out" in caplog.text
    assert "undefined: no ground truth" in (tmp_path / "a" / "report.md").read_text()
    assert set(saved["classes"]["wild"]) <= set(NAMES) and saved["classes"]["nothing"] == {}
    assert np.mean([*saved["classes"]["wild"].values()]) == pytest.approx(got["wild"]["ap"])
    compared = compare([tmp_path / "a", tmp_path / "b"], samples=5)
    assert compared["sets"]["nothing"] == {} and compared["classes"]["wild"].keys() == saved["classes"]["wild"].keys()
    assert compared["sets"]["mean of odinw"]["ap"][0]["value"] == pytest.approx(got["wild"]["ap"])


def assert_store_agrees(folder: Path, name: str) -> None:
    """The pages' verdicts are those of the evidence, and right boxes are where gold of their phrase is."""
    store = EvaluationStore(folder, name)
    tables = read_match_tables(folder / "evidence", name)
    judged = judge_labels(tables)
    samples = [sample for shard in range(len(store.shards)) for sample in store.samples(shard)]
    boxes = [box for sample in samples for box in sample.boxes]
    assert sum(box.verdict == "right" for box in boxes) == judged.correct.sum()
    assert sum(box.verdict in ("right", "wrong") for box in boxes) == len(judged.correct)
    assert sum(box.verdict == "missed" for box in boxes) == (judged.gold_score < store.least).sum()
    assert sum(box.status == "gold" for box in boxes) == len(tables.matches.gold_label)
    for sample in samples:
        gold = [box for box in sample.boxes if box.status == "gold"]
        for box in sample.boxes:
            overlaps = [
                iou_matrix(np.array([box.box]), np.array([g.box]))[0, 0] for g in gold if g.phrase == box.phrase
            ]
            assert box.verdict != "right" or max(overlaps) >= 0.5 - 1e-6
    worst = store.worst(3)
    for kind, places in worst.items():
        assert len(places) == len(set(places)) <= 3
        for shard, row in places:
            assert kind in {box.verdict for box in store.samples(shard)[row].boxes}
    last = int(samples[-1].key)
    assert store.image(*store.place(len(samples) - 1)) == jpeg(last, SIZES[last % 5])


def test_each_protocol_gives_its_own_metrics(shards, teacher, tmp_path):
    protocols = {"federated": "lvis", "refs": "refcoco", "wild": "odinw", "wild2": "odinw", "coco": "coco"}
    sets = shards | {
        "refs": shards["captions"],
        "wild": shards["val"][:1],
        "wild2": shards["val"][1:],
        "coco": shards["val"],
    }
    table = tmp_path / "counts.json"
    table.write_text(json.dumps({"Car": 3, "tree": 50, "traffic light": 500, "dog": 11, "umbrella": 4}))
    config = CONFIG.model_copy(update={"protocols": protocols, "chunk_names": 2, "chunk_detections": 4})
    got = run(sets, tmp_path / "e", teacher, config, frequencies={"federated": str(table)})
    assert {"ap", "ap_rare", "ap_common", "ap_frequent"} <= set(got["federated"])
    assert {"recall_at_1", "merged_recall_at_10"} <= set(got["captions"]) and got["captions"]["queries"] == 10
    assert set(got["refs"]) == {"images", "precision_at_1", "precision_at_5", "precision_at_10", "queries"}
    assert got["refs"]["queries"] == 5  # one expression an image
    assert {"recall_at_1", "ap", "ar", "ap_medium"} <= set(got["val"]) and "recall_at_1" not in got["coco"]
    saved = json.loads((tmp_path / "e" / "metrics.json").read_text())
    assert saved["means"]["odinw"] == {"ap": pytest.approx((got["wild"]["ap"] + got["wild2"]["ap"]) / 2), "sets": 2}
    found = read_predictions(str(tmp_path / "e" / "predictions" / "federated--federated-0.parquet"), 5)
    for one in found:  # four of each prompt of two names: car and tree, traffic light and dog, umbrella
        assert [int(np.isin(one.labels, pair).sum()) for pair in ([0, 1], [2, 3], [4])] == [4, 4, 4]
    for name in sets:
        assert_store_agrees(tmp_path / "e", name)
    report = (tmp_path / "e" / "report.md").read_text()
    assert "APr" in report and "LVIS, fixed AP" in report
    for kind in ("precision-recall", "reliability", "frequency"):
        assert (tmp_path / "e" / "plots" / f"captions-{kind}.svg").read_bytes().startswith(b"<?xml")


def test_thresholds_and_aggregation_are_the_protocols_and_the_models_own(shards, teacher, tmp_path):
    summing = tmp_path / "summing"
    shutil.copytree(teacher, summing)
    config = json.loads((summing / "config.json").read_text())
    (summing / "config.json").write_text(json.dumps(config | {"score_aggregation": "sum"}))
    protocols = {"refs": "refcoco", "coco": "coco", "lvis": "lvis", "wild": "odinw"}
    sets = {"captions": shards["captions"], "refs": shards["captions"], "val": shards["val"], "coco": shards["val"]}
    sets |= {"lvis": shards["federated"], "wild": shards["val"][:1]}
    run(sets, tmp_path / "own", summing, CONFIG.model_copy(update={"protocols": protocols}))
    own = json.loads((tmp_path / "own" / "metrics.json").read_text())
    assert {name: s["threshold"] for name, s in own["settings"].items()} == {
        "captions": 0.05, "coco": 0.05, "lvis": 0.05, "wild": 0.05, "refs": 0.0, "val": 0.0,
    }  # fmt: skip
    assert {s["score_agg"] for s in own["settings"].values()} == {"sum"}
    for agg, same in (("sum", True), ("mean", False)):
        told = CONFIG.model_copy(update={"protocols": protocols, "score_agg": agg})
        run(sets, tmp_path / agg, summing, told)
        assert (files(tmp_path / agg / "predictions") == files(tmp_path / "own" / "predictions")) == same
    assert own["sets"] == json.loads((tmp_path / "sum" / "metrics.json").read_text())["sets"]


def test_captions_are_asked_as_the_labelling_stage_asks_them(shards, teacher, tmp_path):
    run({"captions": shards["captions"]}, tmp_path / "e", teacher, EvaluateConfig(batch_size=1))
    from pipeline.data.training_shards import ShardSet
    from pipeline.evaluation.protocols import SetSpec

    annotator = load_annotator(str(teacher), SetSpec("captions", "flickr", ()).label_config(CONFIG))
    records = ShardSet(shards["captions"])
    found = read_predictions(str(tmp_path / "e" / "predictions" / "captions--captions-0.parquet"), 5)
    (query,), _ = annotator.queries(CAPTION, [(0, 9), (18, 36)])
    for row, one in enumerate(found):
        (alone,) = predict_images(annotator, [open_image(records.image(0, row))], [query])
        order = np.argsort(-alone.score, kind="stable")[:100]
        np.testing.assert_allclose(one.scores, alone.score[order], atol=1e-5)
        assert len(one.scores) and (np.diff(one.scores) <= 0).all()


def test_settings_of_metrics_need_no_new_predictions_and_evidence_is_whole(shards, teacher, tmp_path):
    out = tmp_path / "e"
    sets = {"federated": shards["federated"]}
    run(sets, out, teacher)
    predicted = out / "predictions" / "federated--federated-0.parquet"
    before = predicted.stat().st_mtime_ns
    counts = tmp_path / "counts.json"
    counts.write_text('{"car": 7}')
    run(sets, out, teacher, frequencies={"federated": str(counts)})
    assert predicted.stat().st_mtime_ns == before
    evidence = read_match_tables(out / "evidence", "federated")
    assert evidence.counts == {"car": 7} and evidence.counts_from == "training images"
    assert evidence.matches.images == 5 and len(evidence.matches.gold_label) == 10
    run(sets, out, teacher, CONFIG.model_copy(update={"threshold": 0.2}))
    assert predicted.stat().st_mtime_ns > before


def test_classes_are_asked_for_by_the_prompts_of_the_card(shards, teacher, tmp_path):
    folder = tmp_path / "shards"
    folder.mkdir()
    paths = [str(shutil.copy(path, folder)) for path in shards["val"]]
    card = folder / "val.dataset.json"
    plain = DatasetCard(name="val", kind="detection", label_space=NAMES)
    prompts = {
        "car": ClassPrompt(prefix="there is a ", suffix=" on the road"),
        "dog": ClassPrompt(prompt_name="flat_puppy"),
        "traffic light": ClassPrompt(suffix=" , which is red"),
    }

    def write(**fields):
        card.write_text(plain.model_copy(update=fields).model_dump_json(exclude_none=True))

    def settings_and_predictions(out):
        run({"val": paths}, tmp_path / out, teacher)
        metrics = json.loads((tmp_path / out / "metrics.json").read_text())
        return metrics["settings"]["val"], files(tmp_path / out / "predictions")

    write()
    before, bare = settings_and_predictions("e")
    write(class_prompts=prompts)
    after, prompted = settings_and_predictions("e")
    assert "class_prompts" not in before and "class_prompts" in after and bare.keys() == prompted.keys()
    assert all(bare[name] != prompted[name] for name in bare)

    spec = EvaluationSet.open("val", paths, CONFIG).spec
    (chunk,) = class_chunks(spec, load_annotator(str(teacher), spec.label_config(CONFIG)), CONFIG)
    (query,) = chunk
    assert query.text == "there is a car on the road. tree. traffic light , which is red. flat puppy. umbrella"
    named = [query.text[start:end] for start, end in query.spans]
    assert named == ["car", "tree", "traffic light", "flat puppy", "umbrella"] and query.phrases == (0, 1, 2, 3, 4)
    lvis = replace(spec, protocol="lvis")
    chunks = class_chunks(lvis, load_annotator(str(teacher), spec.label_config(CONFIG)), EvaluateConfig(chunk_names=3))
    assert [q.text for c in chunks for q in c] == [query.text.partition(". flat")[0], "flat puppy. umbrella"]
    assert [q.phrases for c in chunks for q in c] == [(0, 1, 2), (3, 4)]

    write(class_prompts={"cars": ClassPrompt(prefix="a ")})
    with pytest.raises(InputError, match=r"val.dataset.json: class_prompts: found 'cars'; want names of its"):
        run({"val": paths}, tmp_path / "e", teacher)
    annotator = load_annotator(str(teacher), spec.label_config(CONFIG))
    long = tuple(ClassPrompt(prefix="one of many words " * 8, suffix=" at its end") for _ in NAMES)
    (chunk,) = class_chunks(replace(spec, prompts=long), annotator, CONFIG)
    whole = [f"{'one of many words ' * 8}{name} at its end" for name in NAMES]
    assert len(chunk) > 1 and ". ".join(q.text for q in chunk) == ". ".join(whole)
    assert [p for q in chunk for p in q.phrases] == [*range(5)]
    assert [q.text[start:end] for q in chunk for start, end in q.spans] == [*NAMES]
    write(class_prompts={"car": ClassPrompt(prefix="many words " * 300)})
    with pytest.raises(RunError, match="class name 'car': its prompt is longer"):
        run({"val": paths}, tmp_path / "e", teacher)


class Killed(BaseException):
    pass


class KillAtShard(Silent):
    """A progress that ends the run when a shard has been committed, as a signal would."""

    def shard(self, report, skipped):
        raise Killed


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_killed_run_ends_as_an_undisturbed_one(shards, teacher, tmp_path, processes):
    sets = {"val": shards["val"], "captions": shards["captions"]}
    got = run(sets, tmp_path / "whole", teacher)
    with pytest.raises(Killed):
        run(sets, tmp_path / "killed", teacher, progress=KillAtShard())
    there = list((tmp_path / "killed" / "predictions").glob("*.parquet"))
    assert len(there) == 1 and not (tmp_path / "killed" / "metrics.json").exists()
    before = there[0].stat().st_mtime_ns
    assert run(sets, tmp_path / "killed", teacher, processes=processes) == got
    assert there[0].stat().st_mtime_ns == before
    assert files(tmp_path / "killed") == files(tmp_path / "whole")


def test_a_broken_image_is_counted_and_its_gold_missed(shards, teacher, tmp_path):
    record = GroundingRecord(
        key="x", dataset="val", kind="detection", image_size=(64, 80), regions=(Region(box=(1, 1, 9, 9), phrase="car"),)
    )
    folder = Path(shards["val"][0]).parent
    write_tar(folder / "broken-0.tar", iter([("x", {"jpg": jpeg(1)[:300], "json": record.to_json()})]))
    got = run({"val": [*shards["val"], str(folder / "broken-0.tar")]}, tmp_path / "e", teacher)
    report = json.loads((tmp_path / "e" / "predictions" / "val--broken-0.report.json").read_text())
    assert report["tallies"]["images"] == {"seen": 1, "kept": 0, "dropped": {"broken_image": 1}}
    assert got["val"]["images"] == 8 and got["val"]["queries"] == 15
    whole = run({"val": shards["val"]}, tmp_path / "f", teacher)
    assert got["val"]["recall_at_10"] == pytest.approx(whole["val"]["recall_at_10"] * 14 / 15)


@pytest.mark.parametrize(
    ("protocols", "kind", "options", "words"),
    [
        (
            {"captions": "lvis"},
            "captions",
            {},
            "protocol lvis does not suit grounding records; want flickr, refcoco or cgf1",
        ),
        ({"val": "flickr"}, "val", {}, "protocol flickr does not suit detection records"),
        ({}, "val", {"frequencies": {"val": "x.json"}}, "x.json: no such file"),
        ({}, "val", {"frequencies": {"vla": "x.json"}}, r"frequencies of vla: no such set \(did you mean val\?\)"),
    ],
)
def test_what_does_not_fit_is_told(shards, teacher, tmp_path, protocols, kind, options, words):
    with pytest.raises(InputError, match=words):
        run(
            {kind: shards[kind]}, tmp_path / "e", teacher, CONFIG.model_copy(update={"protocols": protocols}), **options
        )


def test_a_name_that_is_not_in_the_label_space_is_told(shards, teacher, tmp_path):
    folder = Path(shards["val"][0]).parent
    record = GroundingRecord(
        key="x",
        dataset="val",
        kind="detection",
        image_size=(64, 80),
        regions=(Region(box=(1, 1, 9, 9), phrase="cart"),),
    )
    write_tar(folder / "strange-0.tar", iter([("x", {"jpg": jpeg(1), "json": record.to_json()})]))
    with pytest.raises(InputError, match="strange-0/x: class name 'cart' is not in the label space of val"):
        run({"val": [str(folder / "strange-0.tar")]}, tmp_path / "e", teacher)


def test_a_damaged_record_fails_its_shard(shards, teacher, tmp_path):
    folder = Path(shards["val"][0]).parent
    good = GroundingRecord(key="a", dataset="val", kind="detection", image_size=(64, 80))
    write_tar(
        folder / "damaged-0.tar",
        iter([("a", {"jpg": jpeg(1), "json": good.to_json()}), ("b", {"jpg": jpeg(1), "json": b"{}"})]),
    )
    with pytest.raises(RunError, match="damaged-0/b"):
        run({"val": [str(folder / "damaged-0.tar")]}, tmp_path / "e", teacher)


def call(*arguments: str):
    return CliRunner().invoke(cli.main, [str(a) for a in arguments])


def test_the_commands_from_evaluation_to_promotion(shards, teacher, tmp_path, caplog):
    import shutil

    model = shutil.copytree(teacher, tmp_path / "model")
    options = [
        "--set-shards",
        f"val={shards['val'][0]}",
        "--set-shards",
        f"val={shards['val'][1]}",
        "--set",
        "batch_size=3",
        "--set",
        "protocols.vall=coco",
    ]
    done = call("evaluate", "--model", model, *options, "--out", tmp_path / "a", "--model-card")
    assert done.exit_code == 0, done.output
    # a protocol meant for this set, and by which it was measured
    assert "protocols.vall: no such set here (did you mean val?)" in caplog.text
    assert done.stdout.startswith("val (detection): images 7, recall_at_1 ")
    assert "recall_at_1" in done.output and "R@1" in (model / "README.md").read_text()
    other = shutil.copytree(teacher, tmp_path / "other")
    weights = load_file(other / "model.safetensors")
    save_file({k: v * 0.9 for k, v in weights.items()}, other / "model.safetensors", {"format": "pt"})
    done = call("evaluate", "--model", other, *options, "--out", tmp_path / "b")
    assert done.exit_code == 0, done.output
    values = [json.loads((tmp_path / f / "metrics.json").read_text())["sets"]["val"]["ap"] for f in "ab"]
    assert values[0] != values[1]

    done = call("compare", tmp_path / "a", tmp_path / "b", "--samples", "50", "--json", tmp_path / "c.json")
    assert done.exit_code == 0, done.output
    saved = json.loads((tmp_path / "c.json").read_text())
    assert saved["sets"]["val"]["ap"][1]["difference"] == pytest.approx(values[1] - values[0])
    assert "| AP |" in done.output and "B - A" in done.output and "other settings" not in done.output

    up, down = ("b", "a") if values[1] > values[0] else ("a", "b")
    done = call("promote", tmp_path / up, "--over", tmp_path / down, "--gates", "val.ap>0", "--samples", "20")
    assert done.exit_code == 0 and json.loads((tmp_path / up / "promotion.json").read_text())["promoted"]
    done = call(
        "promote", tmp_path / down, "--over", tmp_path / up, "--gates", "val.ap>=-100,val.ap>0", "--samples", "20"
    )
    assert done.exit_code == 3 and "not promoted: val.ap" in done.output and "wanted val.ap > 0" in done.output
    assert not json.loads((tmp_path / down / "promotion.json").read_text())["promoted"]
    done = call("promote", tmp_path / "a", "--over", tmp_path / "b", "--gates", "lvis.ap>0")
    assert done.exit_code == 2 and "fits no metric; there are val.ap" in done.output
    done = call("promote", tmp_path / "a", "--over", tmp_path / "nothing")
    assert done.exit_code == 2 and "nothing: no metrics.json in it" in done.output

    done = call("evaluate", "--model", other, *options, "--set", "score_agg=max", "--out", tmp_path / "c")
    assert done.exit_code == 0, done.output
    done = call("compare", tmp_path / "a", tmp_path / "c", "--samples", "20")
    assert "val was measured with different settings: score_agg mean (A), max (B)" in done.output
    done = call("promote", tmp_path / "c", "--over", tmp_path / "a", "--samples", "20")
    assert done.exit_code == 2 and "different settings (val: score_agg mean and max)" in done.output

    done = call("label-qa", tmp_path / "a", "--out", tmp_path / "qa")
    assert done.exit_code == 0 and (tmp_path / "qa" / "label_qa.json").is_file(), done.output


def test_what_only_one_folder_has_is_told(shards, teacher, tmp_path):
    run({"val": shards["val"], "wild": shards["val"], "more": shards["val"]}, tmp_path / "a", teacher)
    run({"val": shards["val"]}, tmp_path / "b", teacher)
    done = call("compare", tmp_path / "a", tmp_path / "b", "--samples", "20")
    assert done.exit_code == 0 and "- B has no more, wild\n" in done.output, done.output
    done = call("promote", tmp_path / "b", "--over", tmp_path / "a", "--samples", "20")
    assert done.exit_code == 2 and "the student has no more.ap, wild.ap; evaluate it as" in done.output, done.output
    assert call("promote", tmp_path / "a", "--over", tmp_path / "b", "--samples", "20").exit_code == 0


def test_folders_of_other_images_do_not_compare(shards, teacher, tmp_path):
    for name, paths in (("a", shards["val"]), ("b", shards["val"][:1])):
        run({"val": paths}, tmp_path / name, teacher)
    run({"other": shards["val"]}, tmp_path / "c", teacher)
    done = call("compare", tmp_path / "a", tmp_path / "b")
    assert done.exit_code == 2 and "different shards" in done.output
    done = call("compare", tmp_path / "a", tmp_path / "c")
    assert done.exit_code == 2 and "no evaluation set in common" in done.output
    assert call("compare", tmp_path / "a").exit_code == 2


def test_a_card_keeps_what_others_wrote(shards, teacher, tmp_path):
    import shutil

    from pipeline.evaluation.model_card import write_card

    model = shutil.copytree(teacher, tmp_path / "model")
    run({"val": shards["val"]}, tmp_path / "e", teacher)
    (model / "README.md").write_text("# Mine\n\nWords.\n")
    write_card(model, tmp_path / "e")
    once = (model / "README.md").read_text()
    assert once.startswith("# Mine\n\nWords.\n") and "## Results" in once
    write_card(model, tmp_path / "e")
    assert (model / "README.md").read_text() == once


def test_a_set_is_of_one_kind_whatever_the_order(shards, teacher, tmp_path):
    for mixed in (
        [*shards["val"], *shards["captions"]],
        [*shards["captions"], *shards["val"]],
        [*shards["val"], *shards["federated"]],
    ):
        with pytest.raises(InputError, match=r"evaluation set x: .* records of .*, others hold .*; want one set"):
            run({"x": mixed}, tmp_path / "e", teacher)
    with pytest.raises(InputError, match="evaluation set 'v/al': want a name of"):
        run({"v/al": shards["val"]}, tmp_path / "e", teacher)


def test_a_card_keeps_the_sets_that_were_measured_before(shards, teacher, tmp_path):
    import shutil

    model = shutil.copytree(teacher, tmp_path / "model")
    for name in ("val", "captions", "val"):
        options = [o for s in shards[name] for o in ("--set-shards", f"{name}={s}")]
        done = call(
            "evaluate",
            "--model",
            model,
            *options,
            "--out",
            tmp_path / name,
            "--model-card",
            "--report-json",
            tmp_path / "r.json",
        )
        assert done.exit_code == 0, done.output
    card = (model / "README.md").read_text()
    assert card.count("**val** (") == card.count("**captions** (") == 1
    assert card.count("<!-- evaluate: begin -->") == card.count("## Results") == 1
    assert json.loads((tmp_path / "r.json").read_text())["sets"]["val"]["images"] == 7
    (model / "README.md").write_text(card.replace("Revision `", "Revision `another "))
    assert call("evaluate", "--model", model, *options, "--out", tmp_path / "val", "--model-card").exit_code == 0
    assert "**captions**" not in (model / "README.md").read_text()  # they are another revision's


def test_a_model_folder_that_lacks_its_processor_is_named(shards, teacher, tmp_path):
    import shutil

    model = shutil.copytree(teacher, tmp_path / "model")
    (model / "processor_config.json").unlink()
    done = call("evaluate", "--model", model, "--set-shards", f"val={shards['val'][0]}", "--out", tmp_path / "e")
    assert done.exit_code != 0 and "no processor_config.json or preprocessor_config.json in it" in done.output + str(
        done.stderr
    )
    assert "Traceback" not in done.output


@pytest.mark.parametrize(("text", "found"), [("{", "no JSON"), ("[1]", "a list")])
def test_a_model_folder_of_a_broken_configuration_is_named(shards, tmp_path, text, found):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(text)
    with pytest.raises(InputError, match=f"config.json: found {found}"):
        run({"val": shards["val"]}, tmp_path / "e", tmp_path / "model")


def test_an_output_of_the_wrong_kind_is_one_line(shards, teacher, tmp_path):
    (tmp_path / "file").write_text("")
    options = ("--model", teacher, "--set-shards", f"val={shards['val'][0]}")
    done = call("evaluate", *options, "--out", tmp_path / "file")
    assert done.exit_code == 2 and f"{tmp_path / 'file'}" in done.stderr and "want a folder" in done.stderr
    done = call("evaluate", *options, "--out", tmp_path / "e", "--report-json", tmp_path)
    assert done.exit_code == 2 and "is a directory" in done.stderr and not (tmp_path / "e").exists()


def test_an_evaluations_page_needs_the_shards_that_were_evaluated(shards, teacher, tmp_path):
    sets = {name: list(paths) for name, paths in shards.items() if name != "federated"}
    run(sets, tmp_path / "e", teacher)
    out = tmp_path / "page.html"
    write_evaluation_page(tmp_path / "e", out, title="<b>T</b>", made={"version": "1"})
    page = out.read_text()
    assert "&lt;b&gt;T&lt;/b&gt;" in page and "Worst misses" in page and page.count("<svg ") > 6
    assert all(f"<td>{name}</td>" in page for name in ("car", "tree", "a red car"))
    write_evaluation_page(tmp_path / "e", tmp_path / "again.html", title="<b>T</b>", made={"version": "1"})
    assert (tmp_path / "again.html").read_bytes() == out.read_bytes()
    with pytest.raises(InputError, match="val was evaluated on other shards"):
        EvaluationStore(tmp_path / "e", "val", shards["val"][:1])
    with pytest.raises(
        InputError, match=r"nowhere\.tar: no such file; want the shards of val \(--set-shards val=...\)"
    ):
        EvaluationStore(tmp_path / "e", "val", ["nowhere.tar"])
    with pytest.raises(InputError, match="no set vla; want one of captions, val"):
        EvaluationStore(tmp_path / "e", "vla")
    card = tmp_path / "e" / "evidence" / "val.json"
    card.write_text(json.dumps({k: v for k, v in json.loads(card.read_text()).items() if k != "shards"}))
    with pytest.raises(InputError, match="earlier version; name the set's shards"):
        EvaluationStore(tmp_path / "e", "val")
    assert EvaluationStore(tmp_path / "e", "val", shards["val"]).shards == ["val-0", "val-1"]


def test_present_and_absent_phrases(teacher, shards, tmp_path):
    """Each image is asked for its own phrases alone; compare knows the metrics, and the page shows the boxes."""
    config = EvaluateConfig(batch_size=1, protocols={"federated": "cgf1"})
    metrics = run({"federated": shards["federated"]}, tmp_path / "a", teacher, config)["federated"]
    assert {"cgf1", "mcc", "pmf1", "false_boxes", "presence_threshold", "queries"} <= metrics.keys()
    records = EvaluationSet.open("federated", shards["federated"], config).records
    own_phrases = []
    for row in range(records.counts[0]):
        record = records.record(0, row)
        own_phrases.append({r.phrase for r in record.regions} | set(record.verified_absent))
    assert metrics["queries"] == sum(map(len, own_phrases))
    tables = read_match_tables(tmp_path / "a" / "evidence", "federated")
    of_image = list(zip(tables.queries.image, tables.queries.label, tables.phrases, strict=True))
    assert [{p for image, _, p in of_image if image == n} for n in range(len(own_phrases))] == own_phrases
    # the scores are those of a prompt of these names alone
    spec = EvaluationSet.open("federated", shards["federated"], config).spec
    annotator = load_annotator(str(teacher), spec.label_config(config.model_copy(update={"score_agg": "mean"})), "cpu")
    names = sorted(own_phrases[0])
    (own,) = predict_images(annotator, [open_image(records.image(0, 0))], annotator.class_queries(names))
    best = {names[int(n)]: float(own.score[own.phrase == n].max()) for n in np.unique(own.phrase)}
    m = tables.matches
    texts = {label: phrase for image, label, phrase in of_image if image == 0}
    found = {}
    for n, score in zip(m.label[m.image == 0], m.score[m.image == 0], strict=True):
        found[texts[n]] = max(found.get(texts[n], 0), float(score))
    assert found == pytest.approx(best, abs=1e-4)
    compared = compare([tmp_path / "a", tmp_path / "a"], samples=20)
    assert compared["sets"]["federated"]["mcc"][1]["difference"] == 0
    assert "cgF1" in (tmp_path / "a" / "report.md").read_text()
    write_evaluation_page(tmp_path / "a", tmp_path / "a" / "report.html", title="Evaluation", made={"version": "1"})
    with pytest.raises(InputError, match="found no absent phrase; want records with regions and with verified_absent"):
        EvaluationSet.open("val", shards["val"], EvaluateConfig(protocols={"val": "cgf1"}))
