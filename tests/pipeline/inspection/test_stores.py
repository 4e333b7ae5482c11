"""Stores of samples agree with what the stages and the metrics count; queries select as one reads them."""

from __future__ import annotations

import tarfile
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config import FilterConfig
from pipeline.data.records import GroundingRecord, Region
from pipeline.errors import InputError
from pipeline.evaluation.label_quality import label_quality
from pipeline.evaluation.metrics import SIZES
from pipeline.inspection.label_store import CrawlImages, LabelStore
from pipeline.inspection.samples import Sample, ShownBox, TrainingStore, evenly_spaced
from pipeline.inspection.selection import KINDS, Query, SampleIndex
from pipeline.io.tars import write_tar
from pipeline.stages.jobs import FilterBoxes
from tests.fixtures.crawl import jpeg
from tests.fixtures.regions import write_store


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """A store of regions, with gold for two of its three shards, and its labels."""
    root = tmp_path_factory.mktemp("store")
    regions = write_store(root)
    settings = FilterConfig(threshold=0.4, ignore_above=0.3, best_per_phrase=2)
    FilterBoxes(settings=settings, regions=regions, out=root / "labels").run()
    return root


def labels(root: Path, **options) -> LabelStore:
    files = sorted(str(p) for p in (root / "labels").glob("*.parquet"))
    return LabelStore(files, regions=str(root / "regions"), gold=str(root / "gold"), **options)


def boxes_of(store, shards: range) -> list[ShownBox]:
    return [box for shard in shards for sample in store.samples(shard) for box in sample.boxes]


def test_verdicts_are_those_that_the_report_counts(root):
    store = labels(root)
    quality = label_quality(root / "labels", root / "gold")
    boxes = boxes_of(store, range(2))  # the third shard has no gold
    kept = Counter(box.verdict for box in boxes if box.status == "kept")
    gold = Counter(box.verdict for box in boxes if box.status == "gold")
    assert kept["right"] == quality["all"]["correct"] > 0
    assert kept[""] == quality["phrases_not_gold"]
    assert sum(kept.values()) == quality["all"]["labels"]
    assert gold[""] == quality["all"]["found"] and sum(gold.values()) == quality["all"]["gold"]
    assert {box.verdict for box in boxes if box.status == "ignored"} <= {""}
    assert {(box.status, box.verdict) for box in boxes_of(store, range(2, 3))} <= {
        ("kept", ""), ("ignored", ""), ("dropped", "")
    }  # fmt: skip


def test_labels_and_dropped_regions_are_all_regions(root):
    shown, whole = labels(root), LabelStore([str(p) for p in sorted((root / "regions").glob("*.parquet"))])

    def regions(store) -> Counter:
        return Counter((b.box, b.phrase, b.score) for b in boxes_of(store, range(3)) if b.status != "gold")

    assert regions(shown) == regions(whole)
    assert {box.status for box in boxes_of(shown, range(3))} == {"kept", "ignored", "dropped", "gold"}
    assert {box.status for box in boxes_of(whole, range(3))} == {"kept"}


@pytest.mark.parametrize("compressed", [False, True])
def test_images_of_the_crawl_are_found_whatever_is_around_them(tmp_path, compressed):
    path = tmp_path / "0.tar"
    write_tar(path, [("a", {"txt": b"x", "jpg": jpeg(1)}), ("b", {"txt": b"no image"}), ("c", {"png": jpeg(2)})])
    if compressed:
        with tarfile.open(path) as plain, tarfile.open(tmp_path / "0.tar.gz", "w:gz") as packed:
            for info in plain:
                packed.addfile(info, plain.extractfile(info))
        path.unlink()
        path = tmp_path / "0.tar.gz"
    images = CrawlImages([str(path)])
    assert (images.read("0", "a"), images.read("0", "c")) == (jpeg(1), jpeg(2))
    for shard, key, words in (("0", "b", "no image b"), ("1", "a", "needs its image")):
        with pytest.raises(InputError, match=words):
            images.read(shard, key)


def test_an_image_before_the_damage_of_its_shard_is_found(tmp_path):
    write_tar(tmp_path / "0.tar", [("a", {"jpg": jpeg(1)}), ("b", {"jpg": jpeg(2)})])
    data = (tmp_path / "0.tar").read_bytes()
    (tmp_path / "0.tar").write_bytes(data[: 512 + len(jpeg(1)) + 1000])
    assert CrawlImages([str(tmp_path / "0.tar")]).read("0", "a") == jpeg(1)


def test_training_shards_are_a_store(tmp_path):
    def record(key: str) -> bytes:
        regions = (Region(box=(0, 0, 9, 9), phrase="a dog", tokens_positive=((0, 5),), score=0.5),) * (key != "b")
        return GroundingRecord(
            key=key, dataset="d", kind="grounding", image_size=(64, 80), caption="a dog", regions=regions
        ).to_json()

    for n in range(3):
        keys = [f"{n}{i}" if (n, i) != (1, 1) else "b" for i in range(4)]
        write_tar(tmp_path / f"s-{n}.tar", [(k, {"jpg": jpeg(n), "json": record(k)}) for k in keys])
    store = TrainingStore([str(tmp_path / f"s-{n}.tar") for n in range(3)])
    assert [len(store.samples(n)) for n in range(3)] == [4, 4, 4] and store.image(2, 3) == jpeg(2)
    assert store.samples(0)[1].boxes == (ShownBox((0, 0, 9, 9), "a dog", 0.5, ((0, 5),)),)
    whole = list(evenly_spaced(store, 100))
    assert len(whole) == 11 and (1, 1) not in whole
    assert [shard for shard, _ in evenly_spaced(store, 5)] == [0, 0, 1, 1, 2]
    assert list(evenly_spaced(store, 0)) == []


class Fixed:
    """A store of given samples."""

    least = 0.0

    def __init__(self, shards: list[list[Sample]]) -> None:
        self._samples, self.shards = shards, [str(n) for n in range(len(shards))]

    def samples(self, shard: int) -> list[Sample]:
        return self._samples[shard]

    def image(self, shard: int, row: int) -> bytes:
        raise InputError("none")


boxes = st.builds(
    ShownBox,
    box=st.tuples(st.just(0.0), st.just(0.0), st.sampled_from([8.0, 32.0, 64.0, 200.0]), st.sampled_from([8.0, 32.0])),
    phrase=st.sampled_from(["Red car", "car", "dog"]),
    score=st.one_of(st.none(), st.sampled_from([0.1, 0.5, 0.9])),
    status=st.sampled_from(["kept", "ignored", "dropped", "gold"]),
    verdict=st.sampled_from(["", "right", "wrong", "missed"]),
)
stores = st.lists(st.lists(st.lists(boxes, max_size=4), max_size=4), max_size=3)
queries = st.builds(
    Query,
    phrase=st.sampled_from(["", "CAR", "red", "x"]),
    least=st.sampled_from([0.0, 0.5, 0.9]),
    size=st.sampled_from(["", *SIZES]),
    kind=st.sampled_from(["", "all", *KINDS]),
    sort=st.sampled_from(["", "score", "low_score", "boxes"]),
)


@given(stores, queries)
def test_a_query_selects_what_it_says_in_its_order(shards, query):
    store = Fixed([[Sample("s", "k", (9, 9), None, tuple(b)) for b in shard] for shard in shards])
    index = SampleIndex(store)
    places = [(shard, row) for shard in range(len(shards)) for row in range(len(shards[shard]))]
    assert [index.place(n) for n in range(len(index))] == places

    def met(place: tuple[int, int]) -> list[ShownBox]:
        low, high = SIZES.get(query.size, (0, 1e10))
        return [
            box
            for box in shards[place[0]][place[1]]
            if query.phrase.lower() in box.phrase.lower()
            and (box.score is None or box.score >= query.least)
            and low <= box.area < high
            and (query.kind == "all" or (query.kind in box.kinds if query.kind else box.status != "dropped"))
        ]

    def rank(place: tuple[int, int]) -> float:
        scores = [box.score for box in met(place) if box.score is not None]
        best = {"score": [-s for s in scores], "low_score": scores}.get(query.sort, [])
        return -len(met(place)) if query.sort == "boxes" else min(best, default=float("inf")) if query.sort else 0

    chosen = [place for place in places if met(place) or not query.conditions]
    assert [index.place(int(n)) for n in index.select(query)] == sorted(chosen, key=rank)


@pytest.mark.parametrize("wrong", [{"least": "2"}, {"page": "0"}, {"sort": "x"}, {"fraze": "a"}, {"least": "a"}])
def test_a_wrong_address_is_refused(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        Query.parse(wrong)
