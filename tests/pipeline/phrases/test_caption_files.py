"""Captions from a file of their own: found by every name that an image has, counted where there is none."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from pipeline.cli.label import parse_phrases
from pipeline.config import ParsePhrasesConfig
from pipeline.data.caption_files import open_captions
from pipeline.data.records import NUMBERED_PHRASES, STORE_VERSION
from pipeline.errors import InputError, RunError
from pipeline.io.hashing import digest_file, fingerprint
from pipeline.io.tables import footer, read_table
from pipeline.io.tars import write_tar
from pipeline.phrases.parser import model_version
from pipeline.stages.jobs import ParsePhrases
from pipeline.stages.parse_phrases import RULES_VERSION
from tests.fixtures.crawl import jpeg
from tests.fixtures.loose_images import put, write_image_table


@pytest.fixture
def tars(tmp_path):
    """A tar of four samples with captions of their own; the last has no image."""
    samples = [(f"0000{n}", {"jpg": jpeg(n), "txt": b"an old grey horse"}) for n in range(3)]
    (tmp_path / "crawl").mkdir()
    write_tar(tmp_path / "crawl/00000.tar", [*samples, ("00003", {"txt": b"an old grey horse"})])
    return str(tmp_path / "crawl")


def write(path, rows):
    """Write (key, caption) rows in the format of the path."""
    columns = {"key": [key for key, _ in rows], "caption": [caption for _, caption in rows]}
    if path.suffix == ".parquet":
        pq.write_table(pa.table(columns), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps({"key": k, "caption": c, "score": 1}) + "\n" for k, c in rows))
    else:
        lines = [f'{key},"{caption}",1\n' for key, caption in rows]
        path.write_text("key,caption,score\n" + "".join(lines))
    return path


def parsed(shards, captions, out, **fields):
    """(captions by key, report) of a run."""
    report = ParsePhrases(shards=shards, captions=captions, out=out, **fields).run()
    rows = [row for path in sorted(out.glob("*.parquet")) for row in read_table(path, NUMBERED_PHRASES).to_pylist()]
    assert all(row["caption"][row["start"] : row["end"]] == row["phrase"] for row in rows)
    return {row["key"]: row["caption"] for row in rows}, report


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".jsonl"])
def test_captions_replace_the_shards_own(suffix, tars, tmp_path):
    rows = [("00001", "two red cars\nby a lake"), ("00000", "a black dog, asleep"), ("00000", "a sofa"), ("x", "a cat")]
    found, report = parsed(tars, write(tmp_path / f"captions{suffix}", rows), tmp_path / "out")
    assert found == {"00000": "a black dog, asleep. a sofa.", "00001": "two red cars\nby a lake"}
    assert report.tallies["samples"].dropped == {"no_image": 1, "no_caption": 1}


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl"])
def test_lists_of_captions_are_one_text_of_sentences(suffix, tars, tmp_path):
    rows = [("00000", ["a black dog", "A sofa."]), ("00001", []), ("00002", ["a cat"])]
    found, report = parsed(tars, write(tmp_path / f"captions{suffix}", rows), tmp_path / "out")
    assert found == {"00000": "a black dog. A sofa.", "00002": "a cat"}
    assert report.tallies["samples"].dropped == {"no_image": 1, "empty_caption": 1}


def test_few_listed_images_are_no_fault_of_the_shard_but_none_is(tars, tmp_path):
    found, report = parsed(tars, write(tmp_path / "c.csv", [("00001.jpg", "a black dog")]), tmp_path / "out")
    assert found == {"00001": "a black dog"} and report.tallies["samples"].dropped["no_caption"] == 2
    with pytest.raises(RunError, match=r"found no caption of its 3 images .* column key has 'a/b'; want .* '00000'"):
        parsed(tars, write(tmp_path / "other.csv", [("a/b", "a black dog")]), tmp_path / "out2")


def test_loose_images_are_found_by_key_path_or_unique_file_name(tmp_path):
    paths = ["a.b/1.jpg", "a.b/2.jpg", "c/2.jpg", "c/3.jpg", "c/3.png", "d/4.jpg", "d/x.y.jpg"]
    for n, path in enumerate(paths):
        put(tmp_path, f"photos/{path}", jpeg(n))
    rows = [
        ("a%2Eb/1", "a key"),
        ("a.b/2", "a path"),
        ("2.jpg", "an ambiguous name"),
        ("c/3", "an ambiguous path"),
        ("c/3.png", "a whole path"),
        ("4.jpg", "a file name"),
        ("x.y.jpg", "another file name"),
    ]
    settings = {"settings": {"drop_nonvisual": False, "language": None}}
    found, report = parsed(str(tmp_path / "photos"), write(tmp_path / "c.csv", rows), tmp_path / "out", **settings)
    assert found == {
        "a%2Eb/1": "a key", "a%2Eb/2": "a path", "c/3%~png": "a whole path", "d/4": "a file name",
        "d/x%2Ey": "another file name",
    }  # fmt: skip
    assert report.tallies["samples"].dropped == {"no_caption": 2}
    # a name that is no longer one image's gives no caption, also where the image's own shard is the same
    put(tmp_path, "photos/0/4.jpg", jpeg(9))
    found, _ = parsed(str(tmp_path / "photos"), tmp_path / "c.csv", tmp_path / "out", **settings)
    assert "d/4" not in found


def test_rows_of_a_table_are_found_by_key(tmp_path):
    rows = [{"image": {"bytes": jpeg(n), "path": "image.jpg"}} for n in range(2)]
    table = write_image_table(tmp_path / "t.parquet", rows)
    found, _ = parsed(
        str(table), write(tmp_path / "c.csv", [("t-0000001", "a dog"), ("image.jpg", "x")]), tmp_path / "out"
    )
    assert found == {"t-0000001": "a dog"}


def test_the_file_is_in_the_fingerprint_only_if_it_is_given(tars, tmp_path):
    def run(**fields):
        report = ParsePhrases(shards=tars, out=tmp_path / "out", **fields).run()
        return report.done, footer(pq.read_schema(tmp_path / "out/00000.parquet"))["fingerprint"]

    done, own = run()
    config = ParsePhrasesConfig()
    before = fingerprint(  # as it was before there were such files
        "parse-phrases", version=STORE_VERSION, config=config.fingerprinted(), parser=model_version(config),
        rules=RULES_VERSION, inputs={"crawl": digest_file(f"{tars}/00000.tar")},
    )  # fmt: skip
    assert (done, own) == (1, before)
    captions = write(tmp_path / "c.csv", [("00000", "a dog"), ("00001", "a cat")])
    done, first = run(captions=captions)
    assert done == 1 and first != own and run(captions=captions) == (0, first)
    write(captions, [("00000", "a dog"), ("00001", "a horse")])
    done, second = run(captions=captions)
    assert done == 1 and second not in (own, first)
    assert run() == (1, own)


def test_columns_are_found_or_named(tars, tmp_path):
    file = tmp_path / "c.jsonl"
    file.write_text('{"file_name": "00000.jpg", "text": "a dog", "recaption": "a cat"}\n')
    assert parsed(tars, file, tmp_path / "a")[0] == {"00000": "a dog"}
    assert parsed(tars, file, tmp_path / "b", caption_column="recaption")[0] == {"00000": "a cat"}
    for fields, error in [
        ({"caption_column": "none"}, "found columns file_name, text, recaption; want the column none"),
        ({"caption_key": "text"}, "found no caption of its 3 images"),
    ]:
        with pytest.raises((InputError, RunError), match=error):
            parsed(tars, file, tmp_path / "c", **fields)
    with pytest.raises(InputError, match="are of --captions FILE"):
        ParsePhrases(shards=tars, out=tmp_path / "c", caption_key="key").run()


@pytest.mark.parametrize(
    ("name", "content", "error"),
    [
        ("c.txt", b"", r"want captions as \.parquet, \.csv, \.jsonl"),
        ("gone.csv", None, "no such file"),
        ("c.parquet", b"nothing", "not a Parquet file|cannot be read"),
        ("c.csv", b"", "cannot be read"),
        ("c.csv", b"a,b\n1,2\n", "found columns a, b; want a column key,.* or --caption-key"),
        ("c.jsonl", b"[1]\n", "cannot be read.*line 1 is no object"),
        ("c.jsonl", b"{", "cannot be read"),
    ],
)
def test_files_that_are_no_captions_are_named(name, content, error, tmp_path):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=error):
        open_captions(str(tmp_path / name), None, None)


def test_a_damaged_file_fails_the_shard_with_its_name(tars, tmp_path):
    (tmp_path / "c.jsonl").write_text('{"key": "00000", "caption": "a dog"}\n{"key": 1, "caption": "a cat"}\n')
    with pytest.raises(RunError, match=r"c\.jsonl: found rows that cannot be read .*want a Parquet, CSV or JSON"):
        parsed(tars, tmp_path / "c.jsonl", tmp_path / "out")


def test_the_command_has_the_options(tars, tmp_path):
    captions = write(tmp_path / "c.csv", [("00000", "a dog")])
    words = ["--shards", tars, "--out", str(tmp_path / "out"), "--captions", str(captions)]
    result = CliRunner().invoke(parse_phrases, [*words, "--caption-key", "key", "--caption-column", "caption"])
    assert result.exit_code == 0 and "no_caption 2" in result.output
