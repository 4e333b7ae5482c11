"""A crawl that cannot be read as it lies: the first stage that looks fails, and names what it found and wanted."""

from __future__ import annotations

import pytest

from pipeline.config import ParsePhrasesConfig
from pipeline.data.crawl import caption_of, dotted_keys
from pipeline.errors import RunError
from pipeline.io.tars import TarSample
from pipeline.stages.jobs import ParsePhrases
from tests.fixtures.unread_crawls import CAPTION, UNREAD, pairs, put_tar

CONFIG = ParsePhrasesConfig(method="ngrams")


def parse(tmp_path, members, **settings):
    shard = put_tar(tmp_path / "crawl/00000.tar", members)
    settings = CONFIG.model_copy(update=settings)
    return ParsePhrases(shards=(shard,), out=str(tmp_path / "out"), settings=settings).run()


@pytest.mark.parametrize("name", UNREAD)
def test_the_first_stage_refuses_by_name(name, tmp_path):
    members, found = UNREAD[name]
    with pytest.raises(RunError, match=rf"(?s){found}") as error:
        parse(tmp_path, members)
    assert "want an image (KEY.jpg" in str(error.value) and "`caption` in KEY.json" in str(error.value)


def test_half_of_the_samples_must_be_readable(tmp_path):
    members = pairs("{:05d}")
    report = parse(tmp_path / "half", members[:8] + members[8::2])
    assert report.tallies["samples"].dropped == {"no_caption": 4}
    with pytest.raises(RunError, match=r"5 of 8 samples cannot be read \(\{'no_caption': 5\}\)"):
        parse(tmp_path / "less", members[:6] + members[6::2])
    assert parse(tmp_path / "allowed", members[:6] + members[6::2], max_unread_share=0.7).tallies["samples"].kept == 3


def test_samples_merged_by_dots_are_counted_beside_others(tmp_path):
    report = parse(tmp_path, [*pairs("{:05d}"), *pairs("a.{}")[:6]])
    assert report.tallies["samples"].dropped == {"dot_in_key": 3} and report.tallies["samples"].kept == 8
    assert report.numbers["members_not_understood"] == 6
    merged = [("a.jpg", b"any"), ("a.txt", CAPTION.encode()), *pairs("a.{}")[:6], *pairs("{:05d}")]
    report = parse(tmp_path / "own", merged)
    assert report.tallies["samples"].dropped == {"dot_in_key": 3} and report.tallies["samples"].kept == 9


def test_parts_of_a_sample_are_not_samples():
    """WebDataset's masks and views beside an image."""
    assert dotted_keys(TarSample("0", {"jpg": b"", "txt": b"", "seg.png": b"", "left.jpg": b"", "jpg.txt": b""})) == []


@pytest.mark.parametrize("form", ["._{}", "__MACOSX/._{}", "./.ipynb_checkpoints/{}", "x/.DS_Store/{}"])
def test_hidden_files_are_no_data(form, tmp_path):
    plain = pairs("{:05d}")
    report = parse(tmp_path, [m for n, d in plain for m in ((form.format(n), b"\0\5\26\7"), (n, d))])
    assert report.tallies["samples"].kept == 8 and not report.tallies["samples"].dropped
    assert report.numbers["shard_hidden_file"] == 16


def test_an_empty_text_gives_way_to_the_json():
    def caption(**files):
        return caption_of(TarSample("0", {name: data.encode() for name, data in files.items()}))

    assert caption(txt=" \n", json='{"caption": "a dog"}') == ("a dog", None)
    assert caption(txt="a cat", json='{"caption": "a dog"}') == ("a cat", None)
    assert caption(txt="", json='{"text": "a dog"}') == caption(txt="", json="broken") == caption(txt="") == ("", None)
    for nothing in ("nan", " None ", "\ufeff", "\0\0", "\u200b"):
        assert caption(txt=nothing, json='{"caption": "a dog"}') == ("a dog", None)
        assert caption(txt=nothing) == (nothing, None)


def test_a_text_that_is_not_utf8_gives_way_to_the_json():
    files = {"txt": b"caf\xe9", "json": b'{"caption": "a dog"}'}
    assert caption_of(TarSample("0", files)) == ("a dog", None)
    assert caption_of(TarSample("0", {**files, "json": b"{}"})) == (None, "caption_not_utf8")


@pytest.mark.parametrize(
    "text", ['{"caption": "a dog"}', " {'caption': 'a dog', 'id': 1}\n", '\ufeff{"caption":\n"a dog"}']
)
def test_an_object_in_the_text_is_read_as_one_in_the_json(text):
    assert caption_of(TarSample("0", {"txt": text.encode()})) == ("a dog", None)
    assert caption_of(TarSample("0", {"txt": text.encode(), "json": b'{"caption": "a cat"}'})) == ("a dog", None)


@pytest.mark.parametrize(
    "text",
    [
        '{"text": "a dog"}',
        '["a dog", "a cat"]',
        "['a dog']",
        '{"caption": ["a dog"]}',
        '{"caption": "a"}\n{"b": 1}',
        "{}",
    ],
)
def test_data_without_one_caption_is_no_caption(text):
    assert caption_of(TarSample("0", {"txt": text.encode()})) == (None, "caption_is_data")
    assert caption_of(TarSample("0", {"txt": text.encode(), "json": b"[]"})) == (None, "caption_is_data")
    assert caption_of(TarSample("0", {"txt": text.encode(), "json": b'{"caption": "a cat"}'})) == ("a cat", None)


@pytest.mark.parametrize(
    "text",
    ['["Art" poster] a dog', "[OC] a dog", "{a dog}", "[a dog]", "[1] a dog", '"a dog"', "{" * 9000, "{{}}", "{[]}"],
)
def test_a_sentence_in_brackets_is_a_caption(text):
    assert caption_of(TarSample("0", {"txt": text.encode()})) == (text, None)


def test_files_of_a_sample_in_two_folders_are_told(tmp_path):
    apart = [(f"{'images' if name.endswith('jpg') else 'texts'}/{name}", data) for name, data in pairs("{:05d}")]
    with pytest.raises(RunError, match="next to each other, with the same key and folder"):
        parse(tmp_path, apart)
