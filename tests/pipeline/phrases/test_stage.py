"""The stage over shards: every caption counted, the same text parsed once, outputs anywhere."""

import json
import uuid

import pyarrow.parquet as pq
import pytest

from pipeline.config import ParsePhrasesConfig
from pipeline.data.records import NUMBERED_PHRASES, PHRASES
from pipeline.errors import InputError
from pipeline.execution.progress import Silent
from pipeline.io.hashing import digest_file
from pipeline.io.paths import join
from pipeline.io.tables import footer, read_table
from pipeline.io.tars import write_tar
from pipeline.stages import parse_phrases
from pipeline.stages.jobs import ParsePhrases
from tests.fixtures.crawl import write_crawl

CONFIG = ParsePhrasesConfig()
CAPTIONS = [
    "a red car next to a pool and palm trees",
    "a dog in a field of flowers",
    "a red car next to a pool and palm trees",
    "A café's naïve ﬁsh 🚲 | $20, BUY NOW",
    "the love of time",
    "BUY NOW",
]


def shard(folder, captions, name="00000"):
    folder.mkdir(exist_ok=True)
    samples = ((f"{name}{i:04d}", {"jpg": b"any", "txt": text.encode()}) for i, text in enumerate(captions))
    write_tar(folder / f"{name}.tar", samples)
    return str(folder / f"{name}.tar")


@pytest.mark.parametrize(
    "changes",
    [{}, {"method": "referring"}, {"method": "ngrams"}, {"split_conjunctions": True, "drop_boilerplate": False}],
)
def test_rows_are_what_stands_in_the_caption(changes, tmp_path):
    config = ParsePhrasesConfig(**changes)
    report = ParsePhrases(settings=config, shards=[shard(tmp_path, CAPTIONS)], out=tmp_path / "out").run()
    rows = read_table(tmp_path / "out" / "00000.parquet", PHRASES).to_pylist()
    assert len(rows) == report.tallies["phrases"].kept > 3
    assert all(row["caption"][row["start"] : row["end"]] == row["phrase"] for row in rows)
    assert {row["caption"] for row in rows} <= set(CAPTIONS)
    samples = report.tallies["samples"]
    assert samples.seen == len(CAPTIONS) and samples.kept == len({row["key"] for row in rows})
    assert [row["key"] for row in rows] == sorted(row["key"] for row in rows)
    assert footer(pq.read_schema(tmp_path / "out" / "00000.parquet"))["stage"] == "parse-phrases"


def test_captions_without_a_usable_phrase_are_counted(tmp_path):
    report = ParsePhrases(settings=CONFIG, shards=[shard(tmp_path, CAPTIONS)], out=tmp_path / "out").run()
    assert report.tallies["samples"].dropped == {"boilerplate": 1, "no_phrase": 1}
    assert report.tallies["phrases"].dropped["nonvisual"] == 2


def test_half_a_surrogate_pair_is_counted_not_fatal(tmp_path):
    members = [
        ("000", {"jpg": b"any", "json": json.dumps({"caption": "a dog \ud83d"}).encode()}),
        ("001", {"jpg": b"any", "json": json.dumps({"caption": "\U0001f6b2 by a dog"}).encode()}),
    ]
    write_tar(tmp_path / "00000.tar", iter(members))
    report = ParsePhrases(settings=CONFIG, shards=[str(tmp_path / "00000.tar")], out=tmp_path / "out").run()
    assert report.tallies["samples"].dropped == {"caption_not_utf8": 1} and report.tallies["samples"].kept == 1


def test_long_captions_are_cut_and_counted(tmp_path):
    config = ParsePhrasesConfig(max_caption_chars=20)
    report = ParsePhrases(settings=config, shards=[shard(tmp_path, CAPTIONS[:2])], out=tmp_path / "out").run()
    rows = read_table(tmp_path / "out" / "00000.parquet", PHRASES).to_pylist()
    assert report.numbers["captions_cut"] == 2 and max(len(row["caption"]) for row in rows) == 20


class Heard(Silent):
    def __init__(self):
        self.told = []

    def advance(self, n, unit="samples"):
        assert unit == "captions"
        self.told.append(n)


def test_the_same_caption_is_parsed_once_and_progress_told_within_a_shard(tmp_path, monkeypatch):
    monkeypatch.setattr(parse_phrases, "PROGRESS_EVERY", 3)
    heard = Heard()
    report = ParsePhrases(
        settings=CONFIG, shards=[shard(tmp_path, CAPTIONS * 3)], out=tmp_path / "out", progress=heard
    ).run()
    assert heard.told == [3, 1] and report.numbers["distinct_captions"] == 4
    assert report.tallies["samples"].kept == 4 * 3


def test_a_missing_shard_is_named_before_any_work(tmp_path):
    paths = [shard(tmp_path, CAPTIONS), str(tmp_path / "00001.tar")]
    with pytest.raises(InputError, match=r"00001\.tar: no such file"):
        ParsePhrases(settings=CONFIG, shards=paths, out=tmp_path / "out").run()
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_two_workers_write_what_one_does_and_done_shards_are_left_alone(tmp_path):
    crawl = write_crawl(tmp_path / "crawl")
    crawl.append(shard(tmp_path / "crawl", CAPTIONS, "00002"))
    one = ParsePhrases(settings=CONFIG, shards=crawl, out=tmp_path / "one").run()
    two = ParsePhrases(settings=CONFIG, shards=crawl, out=tmp_path / "two", workers=2).run()
    assert one.done == two.done == 3 and one.tallies == two.tallies
    for path in (tmp_path / "one").iterdir():
        assert digest_file(path) == digest_file(tmp_path / "two" / path.name)
    again = ParsePhrases(settings=CONFIG, shards=crawl, out=tmp_path / "two", workers=2).run()
    assert (again.done, again.skipped) == (0, 3)
    other = ParsePhrases(settings=ParsePhrasesConfig(nonvisual=("wordnet",)), shards=crawl, out=tmp_path / "two").run()
    assert (other.done, other.skipped) == (3, 0)


def test_outputs_may_be_objects_behind_a_url(tmp_path):
    paths, bucket = [shard(tmp_path, CAPTIONS)], f"memory://{uuid.uuid4().hex}/phrases"
    assert ParsePhrases(settings=CONFIG, shards=paths, out=bucket).run().done == 1
    ParsePhrases(settings=CONFIG, shards=paths, out=tmp_path / "out").run()
    here, there = (read_table(join(folder, "00000.parquet"), PHRASES) for folder in (tmp_path / "out", bucket))
    assert here.equals(there) and ParsePhrases(settings=CONFIG, shards=paths, out=bucket).run().skipped == 1


DIRTY = [
    "a &quot;blue&quot; cup &amp; two red&nbsp;plates", "A RED CAR 😍 | a <b>dog</b>", "nan", "#dog #cat",
    "Ein schwarzer Hund läuft über die grüne Wiese", "\ufeffmany cats\x00",
]  # fmt: skip


def test_dirty_captions_have_exact_spans_and_are_counted(tmp_path):
    report = ParsePhrases(settings=CONFIG, shards=[shard(tmp_path, DIRTY)], out=tmp_path / "out").run()
    rows = read_table(tmp_path / "out" / "00000.parquet", NUMBERED_PHRASES).to_pylist()
    assert all(row["caption"][row["start"] : row["end"]] == row["phrase"] for row in rows)
    assert {row["caption"] for row in rows} == {DIRTY[0], DIRTY[1], DIRTY[5]}
    assert [(row["root"], row["number"]) for row in rows] == [
        ("cup", 1),
        ("plate", 2),
        ("car", 1),
        ("dog", 1),
        ("cat", 0),
    ]
    assert report.tallies["samples"].dropped == {"placeholder": 1, "only_marks": 1, "not_english": 1}
    counted = {name: n for name, n in report.numbers.items() if name.startswith("captions_with_")}
    kinds = dict.fromkeys(("capitals", "emoji", "entities", "invisible", "separators", "tags"), 1)
    assert counted == {f"captions_with_{kind}": n for kind, n in kinds.items()}


def test_an_earlier_version_s_settings_parse_as_they_did(tmp_path):
    """A run's config.yaml names every setting that its version had."""
    new = ("rules", "language", "known_names", "names")
    written = {name: value for name, value in CONFIG.model_dump(mode="json").items() if name not in new}
    earlier = ParsePhrasesConfig.model_validate(written)
    assert earlier.rules == 2 and earlier.fingerprinted() == written
    assert ParsePhrasesConfig.model_validate(earlier.model_dump(mode="json")) == earlier
    assert ParsePhrasesConfig.model_validate({"nonvisual": ["frame"]}).rules == 3
    assert ParsePhrasesConfig.model_validate(written | {"rules": 3}).rules == 3
    ParsePhrases(settings=earlier, shards=[shard(tmp_path, DIRTY)], out=tmp_path / "out").run()
    assert pq.read_schema(tmp_path / "out" / "00000.parquet").names == PHRASES.names
    again = ParsePhrases(settings=CONFIG, shards=[str(tmp_path / "00000.tar")], out=tmp_path / "out").run()
    assert (again.done, again.skipped) == (1, 0)


def test_a_crawl_in_another_language_is_told(tmp_path):
    german = ["Ein schwarzer Hund läuft über die grüne Wiese", "Zwei Kinder spielen am Strand mit einem Ball", "a dog"]
    report = ParsePhrases(settings=CONFIG, shards=[shard(tmp_path, german)], out=tmp_path / "out").run()
    assert report.tallies["samples"].dropped == {"not_english": 2}
    written = json.loads((tmp_path / "out" / "00000.report.json").read_text())
    assert any("2 of 3 captions are not in the language 'en'" in note for note in written["notes"])


def test_an_unknown_language_is_named(tmp_path):
    config = ParsePhrasesConfig(language="english")
    with pytest.raises(InputError, match=r"parse_phrases.language: found 'english'; want null .* or one of .*en"):
        ParsePhrases(settings=config, shards=[shard(tmp_path, DIRTY)], out=tmp_path / "out").run()
