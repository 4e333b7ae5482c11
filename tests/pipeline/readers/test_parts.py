"""The parts that readers share: streamed JSON is JSON, headers are PIL's, markup and spans lose no character."""

from __future__ import annotations

import contextlib
import io
import json
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from model.grounding import TokenLookup, phrase_tokens, positive_map
from pipeline.data.images import ImageError, image_size
from pipeline.data.keys import image_key, row_key
from pipeline.errors import InputError
from pipeline.readers import json_stream
from pipeline.readers.bad_rows import BadRows
from pipeline.readers.flickr30k import parse_sentence
from pipeline.readers.glip_captions import join_adjacent
from pipeline.readers.image_headers import ImageHeader, _plain_jpeg, read_header, to_upright
from pipeline.readers.index import IndexReader, IndexWriter
from tests.fixtures.crawl import jpeg

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None)
@given(
    first=st.lists(VALUES, max_size=6), second=st.lists(VALUES, max_size=6), other=VALUES,
    chunk=st.integers(1, 40), indent=st.sampled_from([None, 0, 2]), plain=st.booleans(),
    order=st.permutations(["a", "b", "c"]),
)  # fmt: skip
def test_streamed_json_is_json_however_it_is_cut(tmp_path_factory, first, second, other, chunk, indent, plain, order):
    path = tmp_path_factory.getbasetemp() / "a.json"
    values = {"a": first, "b": second, "c": other}
    path.write_text(
        json.dumps({name: values[name] for name in order}, indent=indent, ensure_ascii=plain), encoding="utf-8"
    )
    before, json_stream.CHUNK = json_stream.CHUNK, chunk
    try:
        found = {"a": [], "b": []}
        for name, value in json_stream.stream_object(path, ("a", "b"), "it"):
            found[name].append(value)
    finally:
        json_stream.CHUNK = before
    assert found == {"a": first, "b": second}


@settings(max_examples=60, deadline=None)
@given(rows=st.lists(st.dictionaries(st.text(max_size=5), VALUES, max_size=3), min_size=1, max_size=5), data=st.data())
def test_cut_json_is_refused_not_read_in_part(tmp_path_factory, rows, data):
    path = tmp_path_factory.getbasetemp() / "a.json"
    text = json.dumps(rows)
    path.write_text(text[: data.draw(st.integers(1, len(text) - 1))])
    with pytest.raises(InputError, match="want"):
        list(json_stream.stream_list(path, "a list"))


@pytest.mark.parametrize(
    "text", ['{"a": [1, 2,]}', '{"a": [1 2]}', '{"a" [1]}', '{"a": [1]} x', "{,}", '{"a": [' + "[" * 5000]
)
def test_wrong_json_is_named(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(InputError, match=r"want JSON; found none"):
        list(json_stream.stream_object(tmp_path / "a.json", ("a",), "it"))


def test_other_encodings_and_marks(tmp_path):
    (tmp_path / "a.json").write_bytes(b"\xef\xbb\xbf" + '{"a": ["é"]}'.encode())
    assert list(json_stream.stream_object(tmp_path / "a.json", ("a",), "it")) == [("a", "é")]
    (tmp_path / "a.json").write_bytes('{"a": ["é"]}'.encode("latin-1"))
    with pytest.raises(InputError, match="want JSON in UTF-8"):
        list(json_stream.stream_object(tmp_path / "a.json", ("a",), "it"))


IDS = st.integers(-(2**70), 2**70) | st.text(st.characters(exclude_categories=["Cs"]), max_size=5)


@settings(max_examples=60, deadline=None)
@given(ids=st.lists(IDS, unique_by=str, min_size=1, max_size=12),
       rows=st.lists(st.tuples(st.integers(0, 15), VALUES), max_size=30),
       per=st.integers(1, 5))  # fmt: skip
def test_the_index_gives_every_row_to_its_image_in_order(tmp_path_factory, ids, rows, per):
    path = tmp_path_factory.getbasetemp() / "index"
    path.unlink(missing_ok=True)
    filling = IndexWriter(path, "set")
    for n, row in rows[: len(rows) // 2]:
        filling.row(ids[n] if n < len(ids) else "no image has this id", row)
    for number in ids:
        filling.image(number, [str(number)])
    for n, row in rows[len(rows) // 2 :]:
        filling.row(ids[n] if n < len(ids) else "no image has this id", row)
    filling.finish({"of": "it"})
    filling.close()
    index = IndexReader(path)
    entries = [e for part in index.ranges(per) for e in index.entries(part)]
    assert {e.image[0]: e.rows for e in entries} == {
        str(number): [row for n, row in rows if n == i] for i, number in enumerate(ids)
    }
    assert index.images == len(entries) == len(ids) and index.header == {"of": "it"}
    assert sum(index.orphan_annotations().values()) == sum(n >= len(ids) for n, _ in rows)


def test_annotations_of_images_that_are_not_listed_take_no_memory(tmp_path):
    filling = IndexWriter(tmp_path / "index", "set")
    for number in range(0, 20, 2):
        filling.image(number, [])
    for number in range(20_000):
        filling.row(number, ["x" * 500])
    filling.finish({})
    filling.close()
    index = IndexReader(tmp_path / "index")
    tracemalloc.start()
    entries = [e for part in index.ranges(5) for e in index.entries(part)]
    assert tracemalloc.get_traced_memory()[1] < 1 << 20  # the others' rows are 10 MB
    tracemalloc.stop()
    assert [(e.id, len(e.rows)) for e in entries] == [(n, 1) for n in range(0, 20, 2)]


@given(st.lists(st.text(max_size=6) | st.text("図é./", min_size=20, max_size=300), unique=True, max_size=20))
def test_keys_are_unique_and_fit_for_tars(ids):
    keys = [image_key(i) for i in ids]
    assert len(set(keys)) == len(ids)
    assert all(k and k.isascii() and not set("/. ") & set(k) and len(k) <= 180 for k in keys)


def test_a_cut_key_is_like_no_whole_one():
    cut = image_key("x" * 300)
    assert len(cut) <= 180 and cut == row_key({"key": "x" * 300}) and image_key(cut) != cut
    assert row_key({"key": "a-b"}) == "a-b" and row_key({"key": ""}) is None


@settings(max_examples=60, deadline=None)
@given(
    size=st.tuples(st.integers(1, 90), st.integers(1, 90)), mode=st.sampled_from(["L", "RGB", "CMYK"]),
    options=st.fixed_dictionaries({"progressive": st.booleans(), "optimize": st.booleans(),
                                  "quality": st.integers(5, 95)}),
    comment=st.binary(max_size=40),
)  # fmt: skip
def test_sizes_of_jpegs_are_those_that_pil_finds(size, mode, options, comment):
    buffer = io.BytesIO()
    Image.new(mode, size, 7).save(buffer, "JPEG", comment=comment, **options)
    data = buffer.getvalue()
    assert _plain_jpeg(data) == (size[1], size[0])
    assert read_header(data) == ImageHeader(size[1], size[0], 1, "jpg")


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_damaged_header_gives_the_size_that_pil_gives_or_none(data):
    whole = bytearray(jpeg(1, (30, 20)))
    for _ in range(data.draw(st.integers(0, 3))):
        whole[data.draw(st.integers(0, 330))] = data.draw(st.integers(0, 255))
    cut = bytes(whole[: data.draw(st.integers(0, len(whole)))])
    try:
        height, width = image_size(cut)
    except ImageError:
        with contextlib.suppress(ImageError):
            assert (
                read_header(cut).extension == "jpg"
            )  # a table that PIL looks into and we do not: seen when it is decoded
    else:
        assert read_header(cut).upright == (height, width)


@given(
    box=st.tuples(*[st.integers(0, 40)] * 4).filter(lambda b: b[0] < b[2] and b[1] < b[3]),
    orientation=st.integers(1, 8),
)
def test_a_turned_box_has_its_size_and_stays_inside(box, orientation):
    header = ImageHeader(40, 60, orientation, "jpg")
    x1, y1, x2, y2 = to_upright(box, header)
    height, width = header.upright
    assert 0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height
    assert sorted([x2 - x1, y2 - y1]) == sorted([box[2] - box[0], box[3] - box[1]])


WORDS = st.text(
    st.characters(exclude_characters="[]\n\r", exclude_categories=["Cs", "Cc"]), min_size=1, max_size=8
).filter(lambda w: w.strip() == w and w)


@given(st.lists(st.tuples(WORDS, st.none() | st.integers(0, 99)), min_size=1, max_size=8))
def test_flickr_markup_is_taken_off_and_spans_stay_on_their_words(parts):
    line = " ".join(w if e is None else f"[/EN#{e}/people/other {w}]" for w, e in parts)
    caption, phrases = parse_sentence(line)
    assert caption == " ".join(w for w, _ in parts)
    assert [(int(e), caption[s:t]) for e, _, (s, t) in phrases] == [(e, w) for w, e in parts if e is not None]


@pytest.mark.parametrize("line", ["[/EN#1/people A man", "[/EN#/people A man] x", "[/EN#1 A man] x"])
def test_broken_flickr_markup_is_refused(line):
    with pytest.raises(ValueError, match="near"):
        parse_sentence(line)


@given(caption=st.text("ab ", min_size=1, max_size=20), data=st.data())
def test_word_pieces_put_together_cover_the_same_letters(caption, data):
    ends = st.integers(0, len(caption) - 1).flatmap(lambda s: st.tuples(st.just(s), st.integers(s + 1, len(caption))))
    spans = tuple(data.draw(st.lists(ends, min_size=1, max_size=5)))
    before = {i for s, e in spans for i in range(s, e)}
    after = {i for s, e in join_adjacent(caption, spans) for i in range(s, e)}
    assert before <= after and all(caption[i] == " " for i in after - before)


# --- spans -> tokens -> positive map -> spans, with the tokenizer that training uses


@settings(max_examples=150, deadline=None)
@given(
    words=st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=9), min_size=1, max_size=30),
    limit=st.integers(4, 64), data=st.data(),
)  # fmt: skip
def test_spans_come_back_from_the_positive_map_whatever_the_caption(tokenizer, words, limit, data):
    """Every phrase is whole, or gone; the letters that its tokens cover are those of its words, nothing is shifted."""
    caption, phrases = "", []
    for word in words:
        caption += " " if caption else ""
        phrases.append([(len(caption), len(caption) + len(word))])
        caption += word
    chosen = data.draw(st.lists(st.sampled_from(phrases), min_size=1, max_size=6))
    spans = [sorted({s for phrase in data.draw(st.permutations(chosen))[:2] for s in phrase}), *chosen]
    encoded = tokenizer(caption, truncation=True, max_length=limit, return_offsets_mapping=True)
    offsets = encoded["offset_mapping"]
    tokens, missing = phrase_tokens(offsets, spans)
    rows = positive_map(tokens, len(offsets))
    covered = max((end for _, end in offsets), default=0)
    lookup = TokenLookup(offsets)
    for i, phrase in enumerate(spans):
        back = {c for t in rows[i].nonzero().flatten().tolist() for c in range(*offsets[t])}
        letters = {c for s, e in phrase if lookup.span(s, e) for c in range(s, e) if lookup.token(c) is not None}
        assert (not back) == (i in missing)
        cut = any(e > covered and not lookup.span(s, e) for s, e in phrase)
        if cut:
            assert not back  # a phrase that lost a span is not learnt on what is left
        elif back:
            assert letters <= back
            # what is more than the phrase's own letters belongs to a token that the phrase shares
            assert all(lookup.token(c) in tokens[i] for c in back)


@settings(max_examples=80, deadline=None)
@given(words=st.lists(st.text("abcdefghij", min_size=1, max_size=9), min_size=1, max_size=20), data=st.data())
def test_plain_words_round_trip_exactly(tokenizer, words, data):
    caption = " ".join(words)
    n = data.draw(st.integers(0, len(words) - 1))
    start = sum(len(w) + 1 for w in words[:n])
    offsets = tokenizer(caption, return_offsets_mapping=True)["offset_mapping"]
    tokens, missing = phrase_tokens(offsets, [[(start, start + len(words[n]))]])
    row = positive_map(tokens, len(offsets))[0].nonzero().flatten().tolist()
    assert not missing and {c for t in row for c in range(*offsets[t])} == set(range(start, start + len(words[n])))


def test_bad_rows_are_counted_by_unit_and_name_their_place_once():
    bad = BadRows()
    with bad.row("line 1"):
        pass
    with bad.row("line 2"):
        raise KeyError("a")
    with bad.row("/x/a: row 3", hide="/x/"):
        raise InputError("/x/a: row 3: want b")
    bad.add(InputError("want c"), unit="regions")
    assert bad.good == 1 and bad.header() == {
        "notes": ["line 2: KeyError: 'a'", "a: row 3: want b", "want c"],
        "lost_samples": {"bad_labels": 2},
        "lost": {"bad_row": 1},
    }
    with pytest.raises(ZeroDivisionError), bad.row():
        _ = 1 / 0  # a fault of ours is no bad row


def test_the_first_error_is_raised_where_no_row_is_good():
    bad = BadRows()
    with pytest.raises(InputError, match="row 0"):
        for n in range(1000):
            bad.add(InputError(f"row {n}"), unit="regions" if n % 2 else "samples")
    assert bad.samples.counts == {"bad_labels": 50} and bad.regions.counts == {"bad_row": 50}
    with pytest.raises(InputError, match="row 0"):
        bad.header()
    assert BadRows().header() == {}


def test_an_id_that_is_there_twice_is_refused_also_beside_another_of_its_file(tmp_path):
    index = IndexWriter(tmp_path / "index", "set")
    for number in (1, 2, 2):
        index.image(number, ["a.jpg"], file="a.jpg")
    with pytest.raises(InputError, match="set: duplicate image id 2"):
        index.finish({})
    index.close()
