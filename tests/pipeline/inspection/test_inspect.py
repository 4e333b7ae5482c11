"""inspect: what it counts is what was written, by hand; broken members are counted by reason; the page is one file."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from pipeline.cli.inspect import inspect
from pipeline.config import BuildShardsConfig, FilterConfig, ParsePhrasesConfig
from pipeline.data.records import LABELS, GroundingRecord, Region
from pipeline.errors import InputError
from pipeline.inspection.summary import Summary, inspect_shards
from pipeline.io.shard_patterns import expand_shards
from pipeline.io.tables import write_table
from pipeline.io.tars import write_tar
from pipeline.stages.jobs import BuildShards, FilterBoxes, ParsePhrases
from tests.fixtures.crawl import jpeg, write_crawl
from tests.pipeline.report.test_report import parse
from tests.pipeline.stages.test_labelling import label


def record(key: str, regions=(), *, size=(300, 400), caption="A red car and a dog", **more) -> bytes:
    """A grounding record; a region is (box, phrase, span, score, ignore)."""
    made = tuple(
        Region(box=box, phrase=phrase, tokens_positive=(span,), score=score, annotator=score and "t@1", ignore=ignore)
        for box, phrase, span, score, ignore in regions
    )
    return GroundingRecord(
        key=key, dataset="pseudo", kind="grounding", image_size=size, caption=caption, regions=made, **more
    ).to_json()


CAR, DOG = ("Red car", (2, 9)), ("dog", (16, 19))


def damaged(data: bytes, change) -> bytes:
    values = json.loads(data)
    change(values)
    return json.dumps(values).encode()


def write_train(folder: Path) -> list[str]:
    """Two shards: seven records that are whole, six with troubles."""
    folder.mkdir()
    wide = jpeg(0, (400, 300))
    whole = [
        # a small, a medium and a large box; 0.1 %, 4 %, 90 % of the image
        ("a", [((0, 0, 10, 12), *CAR, 0.91, False), ((10, 10, 90, 70), *DOG, 0.55, False)], {}),
        ("b", [((5, 0, 395, 280), *CAR, 0.5, False)], {"uncertain": ((16, 19),)}),
        ("c", [((0, 0, 50, 50), *DOG, 0.3, True)], {}),
        ("d", [], {}),
        ("e", [((0, 0, 31, 33), *CAR, None, False)] * 2 + [((0, 0, 96, 96), *DOG, None, False)], {}),
    ]
    samples = [(key, {"jpg": wide, "json": record(key, regions, **more)}) for key, regions, more in whole]
    detection = GroundingRecord(
        key="f", dataset="coco", kind="detection", image_size=(64, 80),
        regions=(Region(box=(0, 0, 40, 40), phrase="traffic light"),), verified_absent=("cat",),
    )  # fmt: skip
    samples.append(("f", {"jpg": jpeg(1), "json": detection.to_json()}))
    write_tar(folder / "one-000000.tar", samples)
    good = record("g", [((0, 0, 20, 20), *CAR, 0.7, False)])

    def outside(values):
        values["regions"][0]["box"] = [380, 0, 402, 20]

    def beyond_caption(values):
        values["regions"][0]["tokens_positive"] = [[2, 99]]

    def without_area(values):
        values["regions"][0]["box"] = [5, 5, 5, 9]

    def misspelt(values):
        values["verfied_absent"] = []

    write_tar(
        folder / "two-000000.tar",
        [
            ("a", {"jpg": wide, "json": damaged(record("a", [((0, 0, 9, 9), *CAR, 0.7, False)]), outside)}),
            ("h", {"jpg": wide, "json": damaged(good, beyond_caption)}),
            ("i", {"jpg": wide, "json": damaged(good, without_area)}),
            ("j", {"jpg": wide, "json": damaged(good, misspelt)}),
            ("k", {"json": record("k")}),
            ("l", {"jpg": wide[:-900], "json": record("l", [((0, 0, 100, 96), *CAR, 0.8, False)])}),
            ("m", {"jpg": jpeg(2, (200, 100)), "json": record("m")}),
            ("n", {"jpg": wide}),
            ("o", {"jpg": b"no image", "json": record("o")}),
        ],
    )
    return [str(folder / "one-000000.tar"), str(folder / "two-000000.tar")]


@pytest.fixture
def train(tmp_path) -> list[str]:
    return write_train(tmp_path / "train")


def test_it_counts_what_was_written(train):
    summary, _ = inspect_shards(train)
    assert (summary.kind, summary.shards) == ("training", 2)
    assert summary.numbers == {
        "samples": 15, "refused": 4, "with_boxes": 6, "without_boxes": 5, "captions": 10, "boxes": 9,
        "ignore_regions": 1, "uncertain_phrases": 1, "samples_with_verified_absent": 1,
    }  # fmt: skip
    assert summary.tables == {
        "annotators": {"t@1": 5, "human": 4}, "datasets": {"pseudo": 10, "coco": 1},
        "kinds": {"grounding": 10, "detection": 1},
    }  # fmt: skip
    counts = {name: h.counts for name, h in summary.histograms.items()}
    assert counts["boxes_per_image"] == {"0": 5, "1": 4, "2": 1, "3": 1}
    # 10 x 12, 31 x 33 twice, 22 x 20; 80 x 60, 40 x 40; 390 x 280, 96 x 96, 100 x 96
    assert counts["coco_sizes"] == {"small (< 32²)": 4, "medium (< 96²)": 2, "large": 3}
    assert counts["box_sides"] == {
        "8 to 16": 1, "16 to 32": 3, "32 to 64": 1, "64 to 96": 1, "96 to 192": 2, "192 to 384": 1
    }  # fmt: skip
    assert counts["box_shares"] == {
        "0.1 to 1 %": 4, "1 to 4 %": 0, "4 to 10 %": 3, "10 to 25 %": 0, "25 to 50 %": 1, "50 to 90 %": 0, "90 %+": 1,
    }  # fmt: skip
    assert sum(counts["scores"].values()) == 5 and counts["scores"]["0.50 to 0.55"] == 1
    assert counts["phrase_words"] == {"1": 2, "2": 7}
    assert counts["caption_words"] == {"6–10": 10}
    assert summary.phrases == [("red car", 6), ("dog", 2), ("traffic light", 1)] and summary.distinct_phrases == 3
    assert counts["phrase_frequencies"] == {"1": 1, "2": 1, "3–4": 0, "5–9": 1}
    assert summary.extent == [(64, 80), (300, 400)]
    assert sum(counts["shorter_sides"].values()) == 13


def test_shards_are_what_the_first_with_a_sample_is(tmp_path, train):
    """An empty one is what a shard is whose images were all lost."""
    empty, broken = str(tmp_path / "empty.tar"), str(tmp_path / "broken.tar")
    write_tar(empty, [])
    Path(broken).write_bytes(b"no tar" * 200)
    whole, _ = inspect_shards(train)
    summary, _ = inspect_shards([empty, broken, *train])
    assert (summary.kind, summary.numbers, summary.problems) == ("training", whole.numbers, whole.problems)
    assert [f.shard for f in summary.failed] == ["broken"] and summary.shards == 3
    assert inspect_shards([empty])[0].kind == "crawl" and inspect_shards([broken, empty])[0].kind == "crawl"
    write_tar(tmp_path / "web.tar", [("a", {"jpg": jpeg(1), "txt": b"a car"})])
    assert inspect_shards([empty, str(tmp_path / "web.tar"), *train])[0].kind == "crawl"
    with pytest.raises(InputError, match=r"broken\.tar"):
        inspect_shards([broken, str(tmp_path / "missing.tar")])


@pytest.mark.parametrize("options", [{"phrases": "phrases"}, {"crawl": ["0.tar"]}])
def test_options_of_a_label_store_are_refused_for_what_holds_its_own_texts(train, options):
    with pytest.raises(InputError, match=r"are for labels or regions; these are training shards"):
        inspect_shards(train, **options)


def test_problems_are_counted_by_reason_and_named(train):
    summary, _ = inspect_shards(train)
    assert summary.problems == {
        "bad_record": 1, "box_outside_image": 1, "box_without_area": 1, "broken_image": 1, "image_size_differs": 1,
        "key_in_another_shard": 1, "no_image": 1, "no_record": 1, "span_outside_caption": 1,
    }  # fmt: skip
    notes = "\n".join(summary.notes)
    for words in ("two-000000/h: span_outside_caption", "two-000000/j: bad_record", "two-000000/m: (100, 200)"):
        assert words in notes


def call(*arguments: str, code: int = 0) -> str:
    done = CliRunner().invoke(inspect, list(arguments))
    assert done.exit_code == code and "Traceback" not in done.output, done.output
    return done.output


def test_the_command_prints_and_writes_the_same(train, tmp_path):
    output = call(str(tmp_path / "train"), "--html", str(tmp_path / "i.html"), "--json", str(tmp_path / "i.json"))
    summary = Summary.model_validate_json((tmp_path / "i.json").read_text())
    assert summary.problems["undecodable_when_drawn"] == 1  # its header is whole: only drawing tells
    page = parse(tmp_path / "i.html")
    words = re.sub(r"\s+", " ", page.text)
    for text in ("samples with boxes 6", "span outside caption 1", "undecodable when drawn 1", "red car 6", "t@1 5"):
        assert text in words and re.search(re.sub(" (?=[0-9])", " +", text), re.sub(" +", " ", output)), text
    assert re.search(r"small \(< 32²\) +4 +44\.4 %", output)
    # those with boxes come first, then others; one of them cannot be drawn, and those without an image are not chosen
    assert len(page.sources) == 8 and all(s.startswith("data:image/jpeg;base64,") for s in page.sources)


def test_the_pictures_depend_on_names_alone(train, tmp_path):
    _, few = inspect_shards(train, pictures=3)
    _, turned = inspect_shards(train[::-1], pictures=3)
    _, more = inspect_shards(train, pictures=5)
    assert [(p.shard, p.key) for p in few] == [(p.shard, p.key) for p in turned]
    assert {(p.shard, p.key) for p in few} < {(p.shard, p.key) for p in more}
    assert all(any(box.status == "kept" for box in p.sample.boxes) for p in more)
    for name in ("a.html", "b.html"):
        call(str(tmp_path / "train"), "--html", str(tmp_path / name), "--pictures", "4")
    first, second = (re.sub(r"(?s)<footer>.*</footer>", "", (tmp_path / n).read_text()) for n in ("a.html", "b.html"))
    assert first == second
    footer = parse(tmp_path / "a.html").text
    assert all(word in footer for word in ("glip-self-train", "command", "date", "UTC", "machine"))


def test_several_processes_count_the_same_and_choose_the_same_pictures(train):
    (one, few), (two, same) = (inspect_shards(train, pictures=3, workers=n) for n in (1, 2))
    assert two == one and [(p.shard, p.key) for p in same] == [(p.shard, p.key) for p in few]


def test_a_crawl_has_captions_and_broken_members(tmp_path):
    summary, pictures = inspect_shards(write_crawl(tmp_path / "crawl"))
    assert (summary.kind, summary.numbers) == ("crawl", {"samples": 11, "captions": 11})
    assert summary.problems == {"broken_image": 1, "no_image": 1, "truncated_tar": 1}
    assert len(pictures) == 9


@pytest.fixture(scope="module")
def store(tmp_path_factory, teacher):
    root = tmp_path_factory.mktemp("store")
    crawl = write_crawl(root / "crawl")
    ParsePhrases(settings=ParsePhrasesConfig(), shards=crawl, out=root / "phrases").run()
    label(crawl, root, teacher)
    regions = [str(p) for p in sorted((root / "regions").glob("*.parquet"))]
    FilterBoxes(
        settings=FilterConfig(threshold=0.02, best_per_phrase=1, ignore_above=0.01),
        regions=regions,
        out=root / "labels",
    ).run()
    BuildShards(
        settings=BuildShardsConfig(link=True),
        shards=crawl,
        out=root / "train",
        phrases=root / "phrases",
        labels=root / "labels",
    ).run()
    return root


def options(root: Path) -> dict:
    return {"phrases": str(root / "phrases"), "crawl": expand_shards(str(root / "crawl"))}


def test_labels_and_the_shards_built_of_them_count_the_same(store):
    labels, drawn = inspect_shards(expand_shards(str(store / "labels"), suffix=".parquet"), **options(store))
    built, linked = inspect_shards(expand_shards(str(store / "train")))
    assert (labels.kind, built.kind) == ("labels", "training")
    assert built.numbers["linked_images"] == built.numbers["samples"]
    for name in ("boxes", "ignore_regions", "with_boxes"):
        assert labels.numbers.get(name) == built.numbers.get(name)
    assert labels.numbers["boxes"] > 0
    for name in ("scores", "phrase_words", "phrase_frequencies", "shorter_sides"):
        assert labels.histograms[name] == built.histograms[name]
    assert labels.phrases == built.phrases and labels.tables["annotators"] == built.tables["annotators"]
    assert labels.problems == built.problems == {}
    assert {p.key: p.image for p in drawn} == {p.key: p.image for p in linked if p.sample.boxes} and drawn
    for stored, record in zip(drawn, (p for p in linked if not p.rank[0]), strict=True):
        assert (stored.sample.caption, stored.sample.size) == (record.sample.caption, record.sample.size)
        for box, region in zip(stored.sample.boxes, record.sample.boxes, strict=True):
            assert (box.phrase, box.spans, box.status) == (region.phrase, region.spans, region.status)
            assert box.score == pytest.approx(region.score, abs=1e-4)


def test_regions_are_counted_and_drawn_whole(store, tmp_path):
    regions, drawn = inspect_shards(expand_shards(str(store / "regions"), suffix=".parquet"), **options(store))
    rows = [n for p in sorted((store / "regions").glob("*.parquet")) for n in [pq.read_metadata(p).num_rows]]
    assert regions.kind == "regions" and regions.numbers["boxes"] == sum(rows)
    assert sum(len(picture.sample.boxes) for picture in drawn) == sum(rows)
    output = call(str(store / "regions"), "--html", str(tmp_path / "r.html"))
    assert f"{sum(rows):,}" in output and "no problems" in output
    assert parse(tmp_path / "r.html").sources == []  # no phrases, no captions, no pictures


def test_a_store_that_does_not_fit_its_captions_is_told(store, tmp_path):
    for path in sorted((store / "labels").glob("*.parquet")):
        table = pq.read_table(path)
        start = table["start"].to_pylist()
        start[0] += 1
        changed = table.set_column(
            table.schema.get_field_index("start"), LABELS.field("start"), pa.array(start, pa.int32())
        )
        write_table(tmp_path / path.name, changed, LABELS, {"teacher": "t@1"})
    summary, _ = inspect_shards(expand_shards(str(tmp_path), suffix=".parquet"), **options(store))
    assert summary.problems == {"phrase_differs": 2}
    without, pictures = inspect_shards(expand_shards(str(tmp_path), suffix=".parquet"), phrases=str(store / "phrases"))
    assert without.tables == {"annotators": {"t@1": without.numbers["boxes"]}} and pictures[0].image is None


def test_a_shard_that_cannot_be_read_is_told_and_the_others_counted(train, tmp_path):
    (tmp_path / "train" / "zzz.tar").write_bytes(b"nothing" * 300)
    output = call(str(tmp_path / "train"), "--no-html")
    assert "2 training shards" in output and "FAILED zzz" in output and "not a tar archive" in output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere"], "nowhere: no such file"),
        (["empty"], "empty: no *.tar files in this folder"),
        (["other.parquet"], "other.parquet: want labels (filter-boxes) or regions (pseudo-label)"),
        (["bad.tar"], "bad.tar: not a tar archive"),
        (["train", "--phrases", "p", "--shards", "nowhere"], "nowhere: no such file"),
    ],
)
def test_wrong_input_is_one_line(train, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.tar").write_bytes(b"x" * 2000)
    pq.write_table(pa.table({"a": [1]}), tmp_path / "other.parquet")
    output = call(*arguments, code=2)
    assert words in output and not (tmp_path / "inspect.html").exists()


def test_shards_of_nothing_are_counted_too(tmp_path):
    write_tar(tmp_path / "empty.tar", [])
    output = call(str(tmp_path / "empty.tar"), "--html", str(tmp_path / "e.html"))
    assert re.search(r"samples +0\n", output) and "no problems" in output


def test_help_shows_an_example():
    assert "Example: inspect train" in call("--help")


def test_a_first_record_that_is_broken_does_not_make_a_crawl_of_a_training_shard(tmp_path):
    samples = [(key, {"jpg": jpeg(1, (400, 300)), "json": record(key)}) for key in ("a", "b", "c")]
    samples[0][1]["json"] = samples[0][1]["json"][:20]
    write_tar(tmp_path / "t.tar", samples)
    summary, _ = inspect_shards([str(tmp_path / "t.tar")])
    assert summary.kind == "training" and summary.problems == {"bad_record": 1}


def test_a_first_table_that_is_broken_is_told_and_the_others_counted(store):
    root = store
    tables = sorted(str(p) for p in (root / "labels").glob("*.parquet"))
    whole, _ = inspect_shards(tables, **options(root))
    broken = root / "broken" / "00000-broken.parquet"
    broken.parent.mkdir()
    broken.write_bytes(b"PAR1 no table")
    summary, _ = inspect_shards([str(broken), *tables], **options(root))
    assert (summary.kind, summary.numbers) == ("labels", whole.numbers)
    assert [f.shard for f in summary.failed] == ["00000-broken"]
