"""build-shards: bounded parts, links to untouched crawl shards, nothing stale left behind."""

from __future__ import annotations

import io
import tarfile

import pytest

from pipeline.config import BuildShardsConfig, FilterConfig, ParsePhrasesConfig
from pipeline.data.caption_phrases import CaptionPhrases
from pipeline.data.keys import shard_key
from pipeline.data.records import LABELS
from pipeline.data.training_shards import ShardSet
from pipeline.data.verdicts import VerdictLog
from pipeline.errors import RunError
from pipeline.io.tables import read_table
from pipeline.io.tars import read_tar, write_tars
from pipeline.labelling.label_records import make_record
from pipeline.stages.jobs import BuildShards, ExportLabels, FilterBoxes, ParsePhrases
from tests.fixtures.crawl import write_crawl
from tests.fixtures.verdicts import verdict
from tests.pipeline.stages.test_labelling import KEEP, digests, label


@pytest.fixture(scope="module")
def store(tmp_path_factory, teacher):
    root = tmp_path_factory.mktemp("store")
    crawl = write_crawl(root / "crawl")
    ParsePhrases(settings=ParsePhrasesConfig(), shards=crawl, out=root / "phrases").run()
    label(crawl, root, teacher)
    regions = [str(p) for p in sorted((root / "regions").glob("*.parquet"))]
    FilterBoxes(settings=KEEP, regions=regions, out=root / "labels").run()
    return root, crawl


def build(store, out, crawl=None, **settings):
    root, shards = store
    config = BuildShardsConfig(**settings)
    return BuildShards(
        settings=config, shards=crawl or shards, out=out, phrases=root / "phrases", labels=root / "labels"
    ).run()


def records(folder):
    found = ShardSet([str(p) for p in sorted(folder.glob("*.tar"))])
    places = [(shard, row) for shard, n in enumerate(found.counts) for row in range(n)]
    return {(r := found.record(*place)).key: (r, found.image(*place)) for place in places}


def test_parts_hold_the_same_records_in_bounded_files(store, tmp_path):
    build(store, tmp_path / "whole")
    build(store, tmp_path / "parts", max_shard_bytes=16_000)
    parts = sorted(p.name for p in (tmp_path / "parts").glob("*.tar"))
    assert {"pseudo-00000.tar", "pseudo-00000-part001.tar"} <= set(parts)
    assert all(p.stat().st_size <= 16_000 for p in (tmp_path / "parts").glob("*.tar"))
    assert records(tmp_path / "parts") == records(tmp_path / "whole") != {}


def test_parts_of_other_settings_do_not_stay(store, tmp_path):
    build(store, tmp_path / "out", max_shard_bytes=1)
    assert len(list((tmp_path / "out").glob("*.tar"))) > 2
    build(store, tmp_path / "out")
    build(store, tmp_path / "fresh")
    assert digests(tmp_path / "out") == digests(tmp_path / "fresh")


def test_links_give_the_same_records_and_images(store, tmp_path):
    root, _ = store
    build(store, tmp_path / "copied")
    build(store, root / "linked", link=True)
    assert records(root / "linked") == records(tmp_path / "copied") != {}
    copied, linked = (sum(p.stat().st_size for p in f.glob("*.tar")) for f in (tmp_path / "copied", root / "linked"))
    assert linked < copied / 1.3  # the fixture's images have about a kilobyte each


def test_a_crawl_shard_that_changed_is_told(store, tmp_path):
    crawl = write_crawl(tmp_path / "crawl")
    build(store, tmp_path / "linked", crawl=crawl, link=True)
    shards = ShardSet([str(tmp_path / "linked" / "pseudo-00000.tar")])
    shards.image(0, 0)
    with open(crawl[0], "ab") as file:
        file.write(b"\0" * 512)
    with pytest.raises(
        RunError, match=r"pseudo-00000\.tar: the crawl shard it links to, .*00000\.tar, has .* bytes now"
    ):
        ShardSet(shards.shards).image(0, 0)
    (tmp_path / "crawl" / "00000.tar").unlink()
    with pytest.raises(RunError, match="is missing"):
        ShardSet(shards.shards).image(0, 0)


def test_compressed_shards_cannot_be_linked(store, tmp_path):
    _, crawl = store
    packed = tmp_path / "00000.tar"
    with tarfile.open(packed, "w:gz") as out, tarfile.open(crawl[0]) as tar:
        for info in tar:
            out.addfile(info, tar.extractfile(info))
    with pytest.raises(RunError, match="compressed"):
        build(store, tmp_path / "linked", crawl=[str(packed)], link=True)
    assert build(store, tmp_path / "copied", crawl=[str(packed)]).tallies["samples"].kept > 0


def test_an_image_of_another_size_than_was_labelled_is_no_label(store, tmp_path):
    from pipeline.io.tars import write_tar
    from tests.fixtures.crawl import jpeg

    _, crawl = store
    samples = [
        (s.key, {**s.files, "jpg": jpeg(0, (40, 40))} if s.key.endswith("0") else s.files) for s in read_tar(crawl[0])
    ]
    write_tar(tmp_path / "00000.tar", samples)
    report = build(store, tmp_path / "out", crawl=[str(tmp_path / "00000.tar")])
    assert report.tallies["samples"].dropped["image_changed"] == 1
    assert report.tallies["regions"].dropped["image_lost"] >= 1


def test_parts_of_no_samples_are_one_empty_shard(tmp_path):
    (only,) = write_tars(lambda i: str(tmp_path / f"{i}.tar"), [], 100)
    assert only.bytes == (tmp_path / "0.tar").stat().st_size and list(read_tar(tmp_path / "0.tar")) == []


def test_images_without_a_label_are_counted(store, tmp_path):
    root, crawl = store
    regions = [str(p) for p in sorted((root / "regions").glob("*.parquet"))]
    FilterBoxes(settings=FilterConfig(threshold=0.999), regions=regions, out=tmp_path / "labels").run()
    report = BuildShards(
        settings=BuildShardsConfig(),
        shards=crawl,
        out=tmp_path / "out",
        phrases=root / "phrases",
        labels=tmp_path / "labels",
    ).run()
    assert report.tallies["samples"].kept == 0 and report.tallies["samples"].dropped.keys() == {"no_label"}


def test_a_box_of_which_rounding_leaves_nothing_is_no_region():
    """In a crawl of millions some box ends within a hundredth of a pixel of the edge; it may not cost its shard."""
    asked = CaptionPhrases("a dog", (0,), ((2, 5),), ("dog",))

    def row(*box: float) -> dict:
        return {
            **dict(zip(("x1", "y1", "x2", "y2"), box, strict=True)),
            "phrase_row": 0,
            "status": "keep",
            "score": 0.5,
        }

    rows = [row(639.997, 1, 640.0, 9), row(1, 2.001, 9, 2.004), row(1.004, 1, 639.999, 9)]
    made = make_record("k", "pseudo", (480, 640), asked, rows, None, BuildShardsConfig())
    assert [r.box for r in made.regions] == [(1.0, 1.0, 640.0, 9.0)]
    gone = make_record("k", "pseudo", (480, 640), asked, rows[:2], None, BuildShardsConfig())
    assert gone.regions == () and gone.uncertain == ((2, 5),)


def test_a_crawl_packed_with_folders_becomes_shards(teacher, tmp_path):
    """`tar -cf 00000.tar .`, versions in folders' names, and keys that would be one without them."""
    (crawl, *_) = write_crawl(tmp_path / "plain")
    samples = [s for s in read_tar(crawl) if "jpg" in s.files and "txt" in s.files][:3]
    names = ("v1.0/0001", "a/1", "a_1")
    folder = tmp_path / "crawl"
    folder.mkdir()
    with tarfile.open(folder / "00000.tar", "w") as tar:
        for name, sample in zip(names, samples, strict=True):
            for extension, data in sample.files.items():
                info = tarfile.TarInfo(f"./{name}.{extension}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    shards = [str(folder / "00000.tar")]
    assert [s.key for s in read_tar(shards[0])] == list(names)
    ParsePhrases(settings=ParsePhrasesConfig(), shards=shards, out=tmp_path / "phrases").run()
    label(shards, tmp_path, teacher)
    FilterBoxes(settings=KEEP, regions=[str(tmp_path / "regions" / "00000.parquet")], out=tmp_path / "labels").run()
    BuildShards(
        settings=BuildShardsConfig(),
        shards=shards,
        out=tmp_path / "train",
        phrases=tmp_path / "phrases",
        labels=tmp_path / "labels",
    ).run()
    found = records(tmp_path / "train")
    assert set(found) <= {"v1%2E0%2F0001", "a%2F1", "a_1"} and len(found) >= 2
    for name, sample in zip(names, samples, strict=True):
        if shard_key(name) in found:
            assert found[shard_key(name)][1] == sample.files["jpg"]


def labels_of(root):
    return {
        (shard.stem, row["key"]): row
        for shard in sorted((root / "labels").glob("*.parquet"))
        for row in read_table(shard, LABELS).to_pylist()[::-1]  # the first of an image stays
    }


def say(decision, shard, row, **values):
    of = {name: row[name] for name in ("key", "phrase", "start", "end", "height", "width")}
    box = tuple(row[c] for c in ("x1", "y1", "x2", "y2"))
    return verdict(decision, shard=shard, **(of | {"box": box} | values))


def test_verdicts_outrank_the_labels(store, tmp_path):
    root, crawl = store
    labels = labels_of(root)
    (first, one), (second, two), *_ = labels.items()
    drawn = (1.0, 2.0, 30.0, 40.0)
    with VerdictLog(tmp_path / "verdicts") as log:
        log.append(
            say("accept", first[0], one), say("missing", first[0], one, box=None, boxes=(drawn,)),
            say("fixed", second[0], two, boxes=(drawn,)), say("reject", first[0], one, end=one["end"] + 1, box=None),
        )  # fmt: skip
    before = records_of(build(store, tmp_path / "before") and tmp_path / "before")
    job = BuildShards(
        shards=crawl, out=tmp_path / "out", phrases=root / "phrases", labels=root / "labels",
        verdicts=tmp_path / "verdicts",
    )  # fmt: skip
    report = job.run()
    assert (report.done, report.skipped, job.run().skipped) == (len(crawl), 0, len(crawl))
    after = records_of(tmp_path / "out")
    changed = {key for key in after if after[key] != before.get(key)}
    assert changed == {shard_key(one["key"]), shard_key(two["key"])} and after.keys() == before.keys()
    record, was = after[shard_key(one["key"])], before[shard_key(one["key"])]
    people = [r for r in record.regions if r.annotator == "ann"]
    assert [r.box for r in people] == [drawn] and people[0].score is None
    assert people[0].tokens_positive == ((one["start"], one["end"]),)
    assert len(record.regions) == len(was.regions) + 1
    assert sum(r.score is None for r in record.regions) == 2  # the accepted one, and the drawn one
    assert [r.box for r in after[shard_key(two["key"])].regions if r.annotator == "ann"] == [drawn]
    numbers = {name: n for name, n in report.numbers.items() if name.startswith("verdicts")}
    assert numbers == {
        "verdicts_accepted": 1, "verdicts_added": 1, "verdicts_fixed": 1, "verdicts_unknown_phrase": 1
    }  # fmt: skip
    # an export of the label store has the same
    exported = ExportLabels(
        dirs=root / "labels", to="odvg", out=tmp_path / "odvg", phrases=root / "phrases",
        verdicts=tmp_path / "verdicts", images="none",
    ).run()  # fmt: skip
    assert exported.report.numbers.items() >= {"verdicts_accepted": 1, "verdicts_fixed": 1}.items()
    # new verdicts: the shard they are of is built again, and no other
    with VerdictLog(tmp_path / "verdicts") as log:
        log.append(say("reject", first[0], one))
    report = job.run()
    assert (report.done, report.skipped) == (1, len(crawl) - 1)


def test_a_rejected_phrase_is_trained_as_absent(store, tmp_path):
    root, crawl = store
    labels = labels_of(root)
    (shard, key), row = next(iter(labels.items()))
    with VerdictLog(tmp_path / "verdicts") as log:
        log.append(say("reject", shard, row, box=None))
    build(store, tmp_path / "before")
    BuildShards(
        shards=crawl, out=tmp_path / "out", phrases=root / "phrases", labels=root / "labels",
        verdicts=tmp_path / "verdicts",
    ).run()  # fmt: skip
    was, record = (records_of(tmp_path / name)[shard_key(key)] for name in ("before", "out"))
    span = (row["start"], row["end"])
    assert span in {s for r in was.regions for s in r.tokens_positive}
    assert span not in {s for r in record.regions for s in r.tokens_positive} | set(record.uncertain)
    assert record.uncertain == was.uncertain


def test_verdicts_on_other_labels_are_refused(store, tmp_path):
    root, crawl = store
    (shard, _), row = next(iter(labels_of(root).items()))
    with VerdictLog(tmp_path / "verdicts") as log:
        log.append(say("accept", shard, row | {"height": 7}))
    job = BuildShards(
        shards=crawl, out=tmp_path / "out", phrases=root / "phrases", labels=root / "labels",
        verdicts=tmp_path / "verdicts", max_failed=0,
    )  # fmt: skip
    with pytest.raises(RunError, match="found verdicts on an image of other height and width"):
        job.run()
    with VerdictLog(tmp_path / "others") as log:
        log.append(say("accept", shard, row | {"phrase": "another"}))
    with pytest.raises(RunError, match="1 of the 1 verdicts are of images or phrases that it does not have"):
        job.model_copy(update={"verdicts": str(tmp_path / "others")}).run()


def records_of(folder):
    return {key: record for key, (record, _) in records(folder).items()}
