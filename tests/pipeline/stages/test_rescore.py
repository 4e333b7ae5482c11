"""rescore: real CLIP, SigLIP and SigLIP2 at a tiny size look at stored regions; one row in, one row out."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import AutoModel, AutoProcessor

from pipeline.annotators.region_text import load_region_text
from pipeline.cli import app as cli
from pipeline.config import FilterConfig, ParsePhrasesConfig, PseudoLabelConfig, RescoreConfig
from pipeline.data.images import open_image
from pipeline.data.name_list import footer_names
from pipeline.data.records import LABELS, NAMED_LABELS, NAMED_REGIONS, NUMBERED_REGIONS, REGIONS, RESCORED
from pipeline.errors import InputError, RunError
from pipeline.io.hashing import digest_file
from pipeline.io.tables import footer, read_table, write_table
from pipeline.io.tars import read_tar, write_tar
from pipeline.stages.jobs import FilterBoxes, MergeRegions, ParsePhrases, PseudoLabel, Rescore
from tests.fixtures import teachers
from tests.fixtures.crawl import jpeg, write_crawl
from tests.fixtures.names import NAMES, named, write_images, write_named

CONFIG = RescoreConfig(batch_size=5)


@pytest.fixture(scope="module")
def scorers(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("scorers")
    return {name: getattr(teachers, name)(root / name) for name in ("clip", "siglip", "siglip2")}


@pytest.fixture(scope="module")
def store(tmp_path_factory, teacher) -> Path:
    """crawl/ and regions/ of two shards."""
    root = tmp_path_factory.mktemp("store")
    crawl = write_crawl(root / "crawl")
    ParsePhrases(settings=ParsePhrasesConfig(), shards=crawl, out=root / "phrases").run()
    config = PseudoLabelConfig(floor=0.01, batch_size=4, max_regions_per_phrase=4)
    PseudoLabel(settings=config, shards=crawl, out=root / "regions", phrases=root / "phrases", teacher=teacher).run()
    return root


def crawl_of(root: Path) -> list[str]:
    return [str(p) for p in sorted((root / "crawl").glob("*.tar"))]


def score(root: Path, scorer: Path, out: Path, config: RescoreConfig = CONFIG, **options):
    return Rescore(
        settings=config, shards=crawl_of(root), out=out, regions=root / "regions", scorer=scorer, **options
    ).run()


@pytest.mark.parametrize(
    ("name", "similarity"),
    [("clip", "cosine"), ("siglip", "cosine"), ("siglip", "sigmoid"), ("siglip2", "cosine"), ("siglip2", "sigmoid")],
)
def test_every_region_is_scored_as_the_judge_scores_its_crop(scorers, store, tmp_path, name, similarity):
    report = score(store, scorers[name], tmp_path, RescoreConfig(batch_size=5, similarity=similarity))
    network, processor = AutoModel.from_pretrained(scorers[name]).eval(), AutoProcessor.from_pretrained(scorers[name])
    checked = 0
    for shard in crawl_of(store):
        file = f"{Path(shard).stem}.parquet"
        before = read_table(store / "regions" / file, NUMBERED_REGIONS)
        after = read_table(tmp_path / file, NUMBERED_REGIONS.append(RESCORED.field("region_text")))
        assert after.drop_columns("region_text").equals(before)
        images = {s.key: s.files.get("jpg") for s in read_tar(shard)}
        for row in after.to_pylist()[::3]:
            image = open_image(images[row["key"]])
            edges = [np.floor(row["x1"]), np.floor(row["y1"]), np.ceil(row["x2"]), np.ceil(row["y2"])]
            crop = image.crop(tuple(map(int, edges)))
            limit = network.config.text_config.max_position_embeddings
            text = processor.tokenizer(
                [row["phrase"]], padding="max_length", max_length=limit, truncation=True, return_tensors="pt"
            )
            text.pop("token_type_ids", None)
            with torch.inference_mode():
                seen = network(**text, **processor.image_processor([crop], return_tensors="pt"))
            if similarity == "sigmoid":
                wanted = float(seen.logits_per_image.sigmoid())
            else:
                wanted = max(0.0, float((seen.image_embeds * seen.text_embeds).sum()))
            assert row["region_text"] == pytest.approx(wanted, abs=1e-5)
            checked += 1
    assert checked > 10
    assert report.tallies["scores"].kept == report.tallies["scores"].seen > 30


def test_scores_differ_by_crop_and_phrase_and_do_not_depend_on_the_batch(scorers, store, tmp_path):
    for out, size in (("small", 5), ("large", 1000)):
        score(store, scorers["siglip"], tmp_path / out, RescoreConfig(similarity="sigmoid", batch_size=size))
    small, large = (
        read_table(tmp_path / n / "00000.parquet", RESCORED)["region_text"].to_numpy() for n in ("small", "large")
    )
    np.testing.assert_allclose(small, large, atol=1e-5)
    assert len(np.unique(small.round(5))) > 20


def test_sigmoid_is_siglips_own_probability(scorers, store, tmp_path):
    score(store, scorers["siglip"], tmp_path / "a", RescoreConfig(similarity="sigmoid"))
    score(store, scorers["siglip"], tmp_path / "b")
    network = AutoModel.from_pretrained(scorers["siglip"])
    sigmoid, cosine = (read_table(tmp_path / n / "00000.parquet", RESCORED)["region_text"].to_numpy() for n in "ab")
    wanted = 1 / (1 + np.exp(-(cosine * network.logit_scale.exp().item() + network.logit_bias.item())))
    positive = cosine > 0
    assert positive.any()
    np.testing.assert_allclose(sigmoid[positive], wanted[positive], atol=1e-5)
    with pytest.raises(InputError, match=r"sigmoid is SigLIP's own; .*clip holds a clip: want cosine"):
        score(store, scorers["clip"], tmp_path / "c", RescoreConfig(similarity="sigmoid"))


def test_a_template_and_bf16_are_settings(scorers, store, tmp_path):
    tables = []
    for i, change in enumerate([{}, {"template": "a photo of {}"}, {"precision": "bf16"}]):
        score(store, scorers["siglip"], tmp_path / str(i), RescoreConfig(similarity="sigmoid", **change))
        tables.append(read_table(tmp_path / str(i) / "00000.parquet", RESCORED)["region_text"].to_numpy())
    assert np.abs(tables[0] - tables[1]).max() > 1e-3 and 0 < np.abs(tables[0] - tables[2]).max() < 0.05
    with pytest.raises(ValueError, match="want one"):
        RescoreConfig(template="a photo")


def test_lost_images_keep_their_regions_without_a_score(scorers, store, tmp_path):
    (tmp_path / "crawl").mkdir()
    shutil.copytree(store / "regions", tmp_path / "regions")
    samples = {s.key: s.files for s in read_tar(crawl_of(store)[0])}
    samples["000000000"]["jpg"] = samples["000000000"]["jpg"][:200]  # broken since
    samples["000000001"]["jpg"] = jpeg(1, (81, 64))  # another image since
    del samples["000000002"]
    write_tar(tmp_path / "crawl" / "00000.tar", iter(samples.items()))
    report = score(tmp_path, scorers["clip"], tmp_path / "out", RescoreConfig(max_lost_share=0.8))
    assert report.tallies["samples"].dropped == {"broken_image": 1, "image_changed": 1, "not_in_shard": 1}
    rows = read_table(tmp_path / "out" / "00000.parquet", RESCORED).to_pylist()
    lost = [r for r in rows if r["region_text"] is None]
    assert {r["key"] for r in lost} == {"000000000", "000000001", "000000002"}
    scores = report.tallies["scores"]
    assert scores.dropped == {"image_lost": len(lost)} and scores.kept == len(rows) - len(lost) > 0
    with pytest.raises(RunError, match=r"3 of 4 images lost.*allowed share: 0\.5"):
        score(tmp_path, scorers["clip"], tmp_path / "strict")


def test_a_second_run_does_nothing_and_another_gives_the_same_bytes(scorers, store, tmp_path):
    first = score(store, scorers["clip"], tmp_path / "a")
    assert (first.done, first.skipped) == (2, 0)
    again = score(store, scorers["clip"], tmp_path / "a")
    assert (again.done, again.skipped) == (0, 2)
    (tmp_path / "a" / "00001.parquet").write_bytes(b"half")
    assert score(store, scorers["clip"], tmp_path / "a").done == 1
    score(store, scorers["clip"], tmp_path / "b")
    names = sorted(p.name for p in (tmp_path / "a").iterdir())
    assert names == sorted(p.name for p in (tmp_path / "b").iterdir())
    assert all(digest_file(tmp_path / "a" / n) == digest_file(tmp_path / "b" / n) for n in names)
    assert score(store, scorers["siglip"], tmp_path / "a").done == 2  # another scorer
    about = footer(pq.read_schema(tmp_path / "a" / "00000.parquet"))
    assert (
        about["scorer"].startswith("siglip@") and about["teacher"].startswith("glip@") and about["stage"] == "rescore"
    )


def test_processes_and_decoding_threads_give_the_same_bytes_and_a_rate(scorers, store, tmp_path):
    reports = [
        score(store, scorers["siglip2"], tmp_path / "a", decoders=1),
        score(store, scorers["siglip2"], tmp_path / "b", decoders=3),
        score(store, scorers["siglip2"], tmp_path / "c", processes=2, price=2.0),
    ]
    names = sorted(p.name for p in (tmp_path / "a").iterdir())
    for out in "bc":
        assert names == sorted(p.name for p in (tmp_path / out).iterdir())
        assert all(digest_file(tmp_path / "a" / n) == digest_file(tmp_path / out / n) for n in names)
    for report, devices in zip(reports, (1, 1, 2), strict=True):
        assert report.rates.devices == devices and report.rates.samples == report.tallies["samples"].kept
        assert set(report.rates.parts) == {"load", "read", "decode", "wait", "model", "write"}
    assert "images/s on 2 devices" in "".join(reports[2].lines())
    limited = score(store, scorers["siglip2"], tmp_path / "d", limit=1)
    assert limited.done == 1 and limited.rates.shards_left == 1


def test_notes_stand_in_the_order_of_the_shard(scorers, store, tmp_path):
    """Images are decoded in other threads than the tar is read in."""
    (tmp_path / "crawl").mkdir()
    shutil.copytree(store / "regions", tmp_path / "regions")
    samples = list(read_tar(crawl_of(store)[0]))[:4]
    with tarfile.open(tmp_path / "crawl" / "00000.tar", "w") as tar:
        for i, sample in enumerate(samples[:3]):
            for name, data in ((f"{sample.key}.jpg", sample.files["jpg"][:200]), (f"odd-{i}", b"")):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    score(tmp_path, scorers["clip"], tmp_path / "out", RescoreConfig(max_lost_share=1), decoders=2)
    notes = json.loads((tmp_path / "out" / "00000.report.json").read_text())["notes"]
    keys = [s.key for s in samples]
    begins = ["odd-0", keys[0], "odd-1", keys[1], "odd-2", keys[2], keys[3]]
    assert [note.split(":")[0] for note in notes] == begins


def test_a_shard_without_readable_regions_fails_and_the_rest_go_on(scorers, store, tmp_path):
    shutil.copytree(store / "crawl", tmp_path / "crawl")
    (tmp_path / "regions").mkdir()
    shutil.copy(store / "regions" / "00001.parquet", tmp_path / "regions")
    with pytest.raises(InputError, match=r"00000\.parquet: no such file"):
        score(tmp_path, scorers["clip"], tmp_path / "out")
    (tmp_path / "regions" / "00000.parquet").write_bytes(b"no parquet")
    report = score(tmp_path, scorers["clip"], tmp_path / "out", max_failed=1)
    assert report.done == 1 and "00000.parquet: not a Parquet file" in report.failed[0].error
    write_table(tmp_path / "regions" / "00000.parquet", REGIONS.empty_table(), REGIONS, {})
    assert score(tmp_path, scorers["clip"], tmp_path / "out").done == 1
    assert read_table(tmp_path / "out" / "00000.parquet", RESCORED).num_rows == 0


def test_filter_boxes_reads_both_kinds(scorers, store, tmp_path):
    score(store, scorers["clip"], tmp_path / "rescored")
    rules = FilterConfig(threshold=0.02)
    for folder, out in ((store / "regions", "plain"), (tmp_path / "rescored", "scored")):
        FilterBoxes(
            settings=rules, regions=[str(p) for p in sorted(folder.glob("*.parquet"))], out=tmp_path / out
        ).run()
    plain, scored = (read_table(tmp_path / n / "00000.parquet", LABELS) for n in ("plain", "scored"))
    assert plain.equals(scored) and plain.num_rows > 0
    with pytest.raises(InputError, match="has no column region_text; it has key, phrase_row"):
        read_table(store / "regions" / "00000.parquet", RESCORED)


def test_names_stay_in_a_rescored_store(scorers, tmp_path):
    rows = [named("hound", 0.9), named("cat", 0.8, (50, 50, 90, 90))]
    write_named(tmp_path / "regions" / "00000.parquet", rows)
    write_images(tmp_path / "crawl" / "00000.tar", ("a",))
    score(tmp_path, scorers["clip"], tmp_path / "rescored")
    before, after = (
        read_table(tmp_path / folder / "00000.parquet", NAMED_REGIONS) for folder in ("regions", "rescored")
    )
    assert after.equals(before) and footer_names(footer(after.schema), "") == NAMES
    settings = FilterConfig(score_by="region_text", threshold=0, include_equal=True)
    FilterBoxes(settings=settings, regions=tmp_path / "rescored", out=tmp_path / "labels").run()
    names = read_table(tmp_path / "labels" / "00000.parquet", NAMED_LABELS)["name"].to_pylist()
    assert names == ["dog", "cat"]


def test_further_columns_are_carried_and_a_former_score_is_replaced(scorers, store, tmp_path):
    shutil.copytree(store / "crawl", tmp_path / "crawl")
    shutil.copytree(store / "regions", tmp_path / "again")
    MergeRegions(regions=(str(store / "regions"), str(tmp_path / "again")), out=tmp_path / "regions").run()
    score(tmp_path, scorers["clip"], tmp_path / "rescored")
    merged, rescored = (read_table(tmp_path / n / "00000.parquet", REGIONS, None) for n in ("regions", "rescored"))
    assert rescored.column_names == [*merged.column_names, "region_text"] and "agreed" in merged.column_names
    assert rescored.drop_columns("region_text").equals(merged)
    shutil.rmtree(tmp_path / "regions")
    (tmp_path / "rescored").rename(tmp_path / "regions")
    score(tmp_path, scorers["clip"], tmp_path / "twice")
    assert read_table(tmp_path / "twice/00000.parquet", REGIONS, optional=None).equals(rescored)


@pytest.mark.parametrize("name", ["grounding-dino", "owlv2"])
def test_the_store_has_no_centerness_of_teachers_without(store, scorers, tmp_path, name):
    folder = teachers.owl(tmp_path / "t") if name == "owlv2" else teachers.grounding_dino(tmp_path / "t")
    config = PseudoLabelConfig(floor=0.001, batch_size=2)
    report = PseudoLabel(
        settings=config, shards=crawl_of(store), out=tmp_path / "regions", phrases=store / "phrases", teacher=folder
    ).run()
    assert report.tallies["phrases"].kept > 10
    table = read_table(tmp_path / "regions" / "00000.parquet", REGIONS)
    assert table.num_rows > 10 and table["centerness"].null_count == table.num_rows
    assert footer(pq.read_schema(tmp_path / "regions" / "00000.parquet"))["teacher"].startswith(f"{name}@")
    regions = [str(p) for p in sorted((tmp_path / "regions").glob("*.parquet"))]
    kept = (
        FilterBoxes(settings=FilterConfig(threshold=0.002), regions=regions, out=tmp_path / "labels")
        .run()
        .tallies["regions"]
        .kept
    )
    assert kept > 0
    glip = read_table(store / "regions" / "00000.parquet", REGIONS)
    assert glip["centerness"].null_count == 0 and glip.schema.field("centerness").type == pa.float32()


@settings(max_examples=100, deadline=None)
@given(
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    boxes=st.lists(st.tuples(*[st.floats(-5, 45, width=32)] * 4), min_size=1, max_size=4),
)
def test_crops_hold_what_their_boxes_touch(scorers, size, boxes):
    """Whatever a store holds: boxes without area, beside the image, or turned around give one pixel at least."""
    judge = load_region_text(scorers["siglip"], CONFIG)
    width, height = size
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8))
    crops, which = judge.crops(image, np.array(boxes))
    assert which.shape == (len(boxes),) and set(which.tolist()) == set(range(len(crops)))
    for box, i in zip(boxes, which, strict=True):
        x1, y1 = (int(np.clip(np.floor(v), 0, n - 1)) for v, n in zip(box[:2], size, strict=True))
        x2, y2 = (int(max(min(np.ceil(v), n), low + 1)) for v, n, low in zip(box[2:], size, (x1, y1), strict=True))
        wanted = judge._images([image.crop((x1, y1, x2, y2))], return_tensors="pt")["pixel_values"][0]
        assert torch.equal(crops[i]["pixel_values"], wanted)


@pytest.mark.parametrize("size", [(2000, 3), (3, 2000)])
def test_very_long_crops_take_little_memory(scorers, size):
    judge = load_region_text(scorers["clip"], CONFIG)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8))
    (crop,), _ = judge.crops(image, np.array([[0.0, 0.0, *size]]))
    whole = judge._images([image], return_tensors="pt")["pixel_values"][0]  # all of it enlarged, then its middle
    assert (crop["pixel_values"] - whole).abs().mean() < 0.1


def test_yolo_worlds_rules_go_by_the_new_column(scorers, store, tmp_path):
    score(store, scorers["siglip"], tmp_path / "rescored", RescoreConfig(similarity="sigmoid"))
    paths = [str(p) for p in sorted((tmp_path / "rescored").glob("*.parquet"))]
    rules = FilterConfig(preset="yolo_world", threshold=0.01, min_image_score=0.0)
    report = FilterBoxes(settings=rules, regions=paths, out=tmp_path / "labels").run()
    assert report.failed == [] and report.tallies["regions"].kept > 0
    rows = read_table(tmp_path / "rescored" / "00000.parquet", RESCORED).to_pylist()
    kept = read_table(tmp_path / "labels" / "00000.parquet", LABELS).to_pylist()
    best = {(r["key"], r["phrase_row"], r["rank"]): (r["score"] * max(r["region_text"] or 0, 0)) ** 0.5 for r in rows}
    assert kept and all(best[r["key"], r["phrase_row"], r["rank"]] > 0.01 for r in kept)
    plain = [str(p) for p in sorted((store / "regions").glob("*.parquet"))]
    with pytest.raises(RunError, match=r"no column region_text.*run rescore"):
        FilterBoxes(settings=rules, regions=plain, out=tmp_path / "none").run()


def test_a_batch_of_crops_that_does_not_fit_is_halved(scorers, store, tmp_path, monkeypatch):
    score(store, scorers["clip"], tmp_path / "a")
    judge = load_region_text(scorers["clip"], CONFIG)
    features, seen = judge._model.get_image_features, []

    def limited(pixel_values):
        seen.append(len(pixel_values))
        if len(pixel_values) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return features(pixel_values=pixel_values)

    monkeypatch.setattr(judge._model, "get_image_features", limited)
    score(store, scorers["clip"], tmp_path / "b")
    a, b = (read_table(tmp_path / n / "00000.parquet", RESCORED)["region_text"].to_numpy() for n in "ab")
    np.testing.assert_allclose(a, b, atol=1e-5)
    assert max(seen) == 5 and {1, 2} <= set(seen)
    assert sum(n > 2 for n in seen) == 1, "a size that did not fit is not tried again"


def test_the_command(scorers, store, tmp_path):
    arguments = ["--shards", str(store / "crawl"), "--regions", str(store / "regions"), "--out", str(tmp_path / "out")]
    options = ["--set", "batch_size=7", "--processes", "1", "--workers", "2"]
    done = CliRunner().invoke(cli.rescore, [*arguments, "--scorer", str(scorers["clip"]), *options])
    assert done.exit_code == 0 and "2 shards done" in done.output and "scores:" in done.output
    assert "images/s on 1 device" in done.output
    assert read_table(tmp_path / "out" / "00001.parquet", RESCORED)["region_text"].null_count == 0
    done = CliRunner().invoke(cli.rescore, [*arguments, "--scorer", str(tmp_path)])
    assert done.exit_code == 2 and "no config.json in it" in done.output
    done = CliRunner().invoke(cli.rescore, [*arguments, "--scorer", str(teachers.owl(tmp_path / "owl"))])
    assert done.exit_code == 2 and "'owlv2' cannot score regions; known: clip, siglip, siglip2" in done.output
