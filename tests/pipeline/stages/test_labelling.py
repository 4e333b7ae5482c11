"""The labelling stages on shards with every kind of trouble: all counted, neighbours unharmed,
restarts byte for byte."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.config import BuildShardsConfig, FilterConfig, ParsePhrasesConfig, PseudoLabelConfig
from pipeline.data.records import LABELS, PHRASES, REGIONS, GroundingRecord
from pipeline.errors import InputError, RunError
from pipeline.io.hashing import digest_file
from pipeline.io.tables import footer, read_table
from pipeline.io.tars import read_tar
from pipeline.stages.jobs import BuildShards, FilterBoxes, ParsePhrases, PseudoLabel

LABEL = PseudoLabelConfig(floor=0.01, batch_size=2, max_regions_per_phrase=4, score_agg="max")
KEEP = FilterConfig(threshold=0.02, best_per_phrase=1, ignore_above=0.01)


def digests(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): digest_file(p) for p in sorted(folder.rglob("*")) if p.is_file()}


def label(crawl: list[str], out: Path, teacher: Path, max_failed: int = 0):
    return PseudoLabel(
        settings=LABEL,
        shards=crawl,
        out=out / "regions",
        phrases=out / "phrases",
        teacher=teacher,
        max_failed=max_failed,
    ).run()


def whole(crawl: list[str], out: Path, teacher: Path) -> list:
    reports = [ParsePhrases(settings=ParsePhrasesConfig(), shards=crawl, out=out / "phrases").run()]
    reports.append(label(crawl, out, teacher))
    regions = [str(p) for p in sorted((out / "regions").glob("*.parquet"))]
    reports.append(FilterBoxes(settings=KEEP, regions=regions, out=out / "labels").run())
    reports.append(
        BuildShards(
            settings=BuildShardsConfig(),
            shards=crawl,
            out=out / "train",
            phrases=out / "phrases",
            labels=out / "labels",
        ).run()
    )
    return reports


@pytest.fixture(scope="module")
def run(tmp_path_factory, teacher):
    from tests.fixtures.crawl import write_crawl

    root = tmp_path_factory.mktemp("run")
    crawl = write_crawl(root / "crawl")
    return crawl, root, whole(crawl, root, teacher)


def test_parse_counts_every_caption_under_a_reason(run):
    _, _, (parsed, *_) = run
    samples = parsed.tallies["samples"]
    assert samples.seen == 9 + 2  # the third sample of the cut shard has lost its txt
    assert samples.dropped == {"boilerplate": 1, "empty_caption": 1, "file_name": 1, "no_image": 1}
    assert parsed.numbers["shard_truncated_tar"] == 1


def test_phrases_are_what_stands_in_the_caption(run):
    _, root, _ = run
    rows = read_table(root / "phrases" / "00000.parquet", PHRASES).to_pylist()
    assert all(r["caption"][r["start"] : r["end"]] == r["phrase"] for r in rows)
    first = [r["phrase"] for r in rows if r["key"] == "000000000"]
    assert first == ["red car", "small green tree"]


def test_labelling_counts_every_image_and_phrase(run):
    _, root, (parsed, labelled, *_) = run
    samples = labelled.tallies["samples"]
    assert samples.seen == parsed.tallies["samples"].kept
    assert samples.dropped == {"broken_image": 1}
    assert labelled.tallies["phrases"].seen == parsed.tallies["phrases"].kept
    table = read_table(root / "regions" / "00000.parquet", REGIONS).to_pylist()
    assert len({r["key"] for r in table}) == 4 and all(0 <= r["x1"] <= r["x2"] <= 80 for r in table)
    assert footer(pq.read_schema(root / "regions" / "00000.parquet"))["teacher"].startswith("glip@")


def test_regions_hold_their_phrases_in_falling_score(run):
    _, root, _ = run
    phrases = read_table(root / "phrases" / "00000.parquet", PHRASES).to_pylist()
    last: dict[int, tuple[int, float]] = {}
    for r in read_table(root / "regions" / "00000.parquet", REGIONS).to_pylist():
        assert r["phrase"] == phrases[r["phrase_row"]]["phrase"] and r["key"] == phrases[r["phrase_row"]]["key"]
        rank, score = last.get(r["phrase_row"], (-1, 2.0))
        assert r["rank"] == rank + 1 < 4 and 0.01 < r["score"] <= score
        last[r["phrase_row"]] = (r["rank"], r["score"])


def test_built_records_are_the_labels_joined_with_untouched_images(run):
    crawl, root, (*_, built) = run
    source = {s.key: s for shard in crawl for s in read_tar(shard)}
    labels: dict[str, list] = {}
    for name in ("00000", "00001"):
        for row in read_table(root / "labels" / f"{name}.parquet", LABELS).to_pylist():
            labels.setdefault(row["key"], []).append(row)
    roots = {
        (row["key"], row["start"], row["end"]): row["root"]
        for name in ("00000", "00001")
        for row in read_table(root / "phrases" / f"{name}.parquet", PHRASES).to_pylist()
    }
    found = [s for n in ("00000", "00001") for s in read_tar(root / "train" / f"pseudo-{n}.tar")]
    assert {s.key for s in found} == set(labels) and built.tallies["samples"].kept == len(found)
    for sample in found:
        assert sample.files["jpg"] == source[sample.key].files["jpg"]
        record = GroundingRecord.model_validate_json(sample.files["json"])
        assert record.caption == source[sample.key].files["txt"].decode()
        assert len(record.regions) == len(labels[sample.key])
        for region in record.regions:
            ((start, end),) = region.tokens_positive
            assert record.caption[start:end] == region.phrase
            assert region.annotator.startswith("glip@")
            assert region.root == roots[sample.key, start, end]


def test_every_phrase_is_a_region_or_uncertain(run):
    _, root, _ = run
    phrases: dict[str, set] = {}
    for r in read_table(root / "phrases" / "00000.parquet", PHRASES).to_pylist():
        phrases.setdefault(r["key"], set()).add((r["start"], r["end"]))
    for sample in read_tar(root / "train" / "pseudo-00000.tar"):
        record = GroundingRecord.model_validate_json(sample.files["json"])
        sure = {span for r in record.regions if not r.ignore for span in r.tokens_positive}
        assert sure | set(record.uncertain) == phrases[sample.key] and not sure & set(record.uncertain)


def test_a_second_run_does_nothing(run, teacher):
    crawl, root, _ = run
    before = {p: p.stat().st_mtime_ns for p in root.rglob("*.parquet")} | {
        p: p.stat().st_mtime_ns for p in root.rglob("*.tar")
    }
    again = whole(crawl, root, teacher)
    assert [(r.done, r.skipped) for r in again] == [(0, 2)] * 4
    assert before == {p: p.stat().st_mtime_ns for p in before}


def test_another_run_and_a_damaged_store_give_the_same_bytes(run, teacher, tmp_path):
    _, root, _ = run
    from tests.fixtures.crawl import write_crawl

    crawl = write_crawl(tmp_path / "crawl")
    whole(crawl, tmp_path, teacher)
    assert digests(tmp_path) == digests(root)
    (tmp_path / "regions" / "00001.parquet").write_bytes(b"half")  # as if the disk had lost it
    (tmp_path / "train" / "pseudo-00000.tar").unlink()
    (tmp_path / "labels" / "00000.report.json").unlink()
    again = whole(crawl, tmp_path, teacher)
    assert [r.done for r in again] == [0, 1, 1, 1]
    assert digests(tmp_path) == digests(root)


def test_other_settings_make_the_shard_anew_and_other_folders_stay(run, teacher, tmp_path):
    _, root, _ = run
    regions = [str(root / "regions" / "00000.parquet")]
    FilterBoxes(settings=KEEP, regions=regions, out=tmp_path).run()
    first = digest_file(tmp_path / "00000.parquet")
    strict = FilterBoxes(settings=FilterConfig(threshold=0.99), regions=regions, out=tmp_path).run()
    assert strict.done == 1 and strict.tallies["regions"].dropped.keys() == {"below_threshold"}
    assert digest_file(tmp_path / "00000.parquet") != first


def test_a_shard_that_loses_too_much_fails_and_its_neighbours_go_on(teacher, tmp_path):
    from pipeline.io.tars import write_tar
    from tests.fixtures.crawl import jpeg

    tmp_path.joinpath("crawl").mkdir()
    for name, data in (("00000", b"no jpeg"), ("00001", jpeg(0))):
        write_tar(tmp_path / "crawl" / f"{name}.tar", iter([(f"{name}0000", {"jpg": data, "txt": b"a red car"})]))
    crawl = [str(p) for p in sorted((tmp_path / "crawl").glob("*.tar"))]
    ParsePhrases(settings=ParsePhrasesConfig(), shards=crawl, out=tmp_path / "phrases").run()
    with pytest.raises(RunError, match=r"1 of 2 shards failed.*00000.*broken_image"):
        label(crawl, tmp_path, teacher)
    assert not (tmp_path / "regions" / "00000.parquet").exists()
    report = label(crawl, tmp_path, teacher, max_failed=1)
    assert (report.done, report.skipped, [f.shard for f in report.failed]) == (0, 1, ["00000"])


def test_wrong_inputs_are_named(crawl, teacher, tmp_path):
    with pytest.raises(InputError, match=r"00000\.parquet: no such file"):
        label(crawl, tmp_path, teacher)
    with pytest.raises(InputError, match=r"no config\.json"):
        label(crawl, tmp_path, tmp_path)


def test_photographs_take_the_same_path(teacher, tmp_path):
    from pipeline.demo.photos import write_photo_shard

    count = write_photo_shard(tmp_path, max_side=160)
    shards = [str(tmp_path / "photos" / "00000.tar")]
    reports = whole(shards, tmp_path, teacher)
    assert reports[0].tallies["samples"].kept == count >= 12
    assert reports[1].tallies["samples"].dropped == {}
    records = [
        GroundingRecord.model_validate_json(s.files["json"]) for s in read_tar(tmp_path / "train/pseudo-00000.tar")
    ]
    assert len(records) == reports[3].tallies["samples"].kept > 0
    assert any("astronaut" in r.phrase for record in records for r in record.regions)


def test_a_teacher_scores_as_its_own_configuration_says(run, teacher, tmp_path):
    crawl, root, _ = run
    options = {"shards": crawl[:1], "phrases": root / "phrases"}
    summing = tmp_path / "summing"
    shutil.copytree(teacher, summing)
    config = json.loads((summing / "config.json").read_text())
    (summing / "config.json").write_text(json.dumps(config | {"score_aggregation": "sum"}))
    plain = LABEL.model_copy(update={"score_agg": None})

    def stored(folder, model, settings):
        report = PseudoLabel(settings=settings, out=tmp_path / folder, teacher=model, **options).run()
        return report, next((tmp_path / folder).glob("*.parquet"))

    _, own = stored("own", summing, plain)
    assert json.loads(footer(pq.read_schema(own))["config"])["score_agg"] == "sum"
    _, told = stored("told", summing, LABEL.model_copy(update={"score_agg": "sum"}))
    assert digest_file(own) == digest_file(told)
    # mean was the default before: stores of models whose own it is are continued
    stored("earlier", teacher, LABEL.model_copy(update={"score_agg": "mean"}))
    report, _ = stored("earlier", teacher, plain)
    assert (report.done, report.skipped) == (0, 1)


@pytest.mark.parametrize(
    ("settings", "warned"),
    [({"threshold": 0.2}, "0.2"), ({"threshold": 0.5, "ignore_above": 0.1}, "0.1"), ({"threshold": 0.23}, None)],
)
def test_a_threshold_below_what_the_store_holds_is_told(run, tmp_path, caplog, settings, warned):
    """The floor cuts before centerness; regions with scores down to its root may be missing."""
    _, root, _ = run
    table = pq.read_table(root / "regions" / "00000.parquet")
    (tmp_path / "regions").mkdir()
    for floor in (0.05, 0.0004):
        told = {b"config": json.dumps({"floor": floor}).encode()}
        pq.write_table(table.replace_schema_metadata(told), tmp_path / "regions" / "00000.parquet")
        caplog.clear()
        FilterBoxes(settings=FilterConfig(**settings), regions=tmp_path / "regions", out=tmp_path / "out").run()
        expected = warned is not None and floor == 0.05
        assert (f"threshold: found {warned}; want 0.22 or more" in caplog.text) == expected, caplog.text


def test_a_teacher_without_centerness_stores_all_above_its_floor(run, tmp_path, caplog):
    _, root, _ = run
    table = pq.read_table(root / "regions" / "00000.parquet")
    column = table.schema.get_field_index("centerness")
    table = table.set_column(column, "centerness", pa.nulls(len(table), pa.float32()))
    pq.write_table(table.replace_schema_metadata({b"config": b'{"floor": 0.05}'}), tmp_path / "00000.parquet")
    for threshold in (0.1, 0.02):
        settings = FilterConfig(threshold=threshold)
        FilterBoxes(settings=settings, regions=tmp_path / "00000.parquet", out=tmp_path / "out").run()
        assert ("threshold: found" in caplog.text) == (threshold == 0.02)


def test_phrase_files_of_nothing_are_refused_unless_the_crawl_is_of_nothing(teacher, tmp_path):
    """As an earlier version wrote them for a crawl that it could not read."""
    from tests.fixtures.crawl import write_crawl
    from tests.fixtures.unread_crawls import put_tar

    crawl = write_crawl(tmp_path / "crawl")
    (tmp_path / "phrases").mkdir()
    for shard in crawl:
        pq.write_table(PHRASES.empty_table(), tmp_path / f"phrases/{Path(shard).stem}.parquet")
    for _ in range(2):  # also when the shards are done
        with pytest.raises(RunError, match=r"found no phrase of any sample of . shards; want those that parse-phrases"):
            label(crawl, tmp_path, teacher, max_failed=9)
    put_tar(tmp_path / "00000.tar", [])
    pq.write_table(PHRASES.empty_table(), tmp_path / "phrases/00000.parquet")
    label([str(tmp_path / "00000.tar")], tmp_path, teacher)
