"""Class names: every form they are given in, what is refused, and the prompt that they make."""

from __future__ import annotations

import json
import logging
import tomllib
from importlib import resources
from pathlib import Path

import pyarrow as pa
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

import pipeline
from model.grounding import SEPARATOR  # imports torch, so that no example waits for it
from pipeline.annotators.tokenizers import token_counts
from pipeline.annotators.windows import class_queries
from pipeline.data.name_list import NameList, footer_names, read_names
from pipeline.errors import InputError
from pipeline.io.model_folder import MINILM_PACKAGE
from pipeline.io.tables import footer, read_table, write_table

word = st.text("abcdefghijklmnopqrstuvwxyzäß猫", min_size=1, max_size=6)
text = st.lists(word, min_size=1, max_size=3).map(" ".join)


@st.composite
def name_lists(draw) -> NameList:
    texts = draw(st.lists(text, min_size=1, max_size=12, unique_by=str.casefold))
    names, synonyms = [texts[0]], [[]]
    for one in texts[1:]:
        if draw(st.booleans()):
            names.append(one)
            synonyms.append([])
        else:
            synonyms[-1].append(one)
    return NameList(names=tuple(names), synonyms=tuple(map(tuple, synonyms)))


@given(name_lists())
def test_every_phrase_is_the_text_of_its_span(names):
    assert [names.prompt[start:end] for start, end in names.spans] == [t for t, _ in names.phrases]
    assert names.prompt == ". ".join(t for t, _ in names.phrases)
    assert [t for t, _ in names.phrases] == [
        t for name, others in zip(names.names, names.synonyms, strict=True) for t in (name, *others)
    ]
    assert [i for _, i in names.phrases] == sorted(i for _, i in names.phrases)


@given(name_lists())
def test_json_gives_the_same_list(names):
    assert NameList.model_validate_json(names.model_dump_json()) == names
    assert footer_names({"names": names.model_dump_json()}, "x") == names
    assert footer_names({}, "x") is None


@given(name_lists())
def test_lines_give_the_same_list(tmp_path_factory, names):
    path = tmp_path_factory.mktemp("names") / "names.txt"
    lines = [
        f"{n}: {', '.join(s)}  # more" if s else f"{n}\n\n# {n}"
        for n, s in zip(names.names, names.synonyms, strict=True)
    ]
    path.write_text("\n".join(lines))
    assert read_names(str(path)) == names


@given(st.lists(text, min_size=2, max_size=5, unique_by=str.casefold))
def test_inline_names_are_those_between_full_stops(names):
    for spec in (". ".join(names), ". ".join(names) + ".", " . ".join(names) + " ."):
        assert read_names(spec) == NameList(names=tuple(names))


def test_one_name_needs_no_full_stop():
    assert read_names("fork lift").names == ("fork lift",)
    assert read_names("cabinet/shelf. chair").names == ("cabinet/shelf", "chair")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("list.json", json.dumps(["dog, wild", "St. Bernard"])),
        ("own.json", NameList(names=("dog, wild", "St. Bernard")).model_dump_json()),
        (
            "coco.json",
            json.dumps(
                {"images": [], "categories": [{"id": 9, "name": "St. Bernard"}, {"id": 2, "name": "dog, wild"}]}
            ),
        ),
        (
            "a.dataset.json",
            json.dumps({"name": "a", "kind": "detection", "label_space": ["dog, wild", "St. Bernard"]}),
        ),
        ("data.yaml", yaml.safe_dump({"path": ".", "names": ["dog, wild", "St. Bernard"]})),
        ("numbered.yml", yaml.safe_dump({"names": {10: "St. Bernard", 2: "dog, wild"}})),
    ],
)
def test_files_give_their_order_and_names_with_marks(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    assert read_names(str(tmp_path / name)).names == ("dog, wild", "St. Bernard")


def test_words_of_sets_give_their_names():
    coco, voc = read_names("coco"), read_names("VOC")
    assert (len(coco.names), coco.names[0], coco.names[-1]) == (80, "person", "toothbrush")
    assert (len(voc.names), voc.names[0], voc.names[-1]) == (20, "aeroplane", "tvmonitor")


def test_lists_of_the_package():
    lvis, new, old = (read_names(word) for word in ("LVIS", "objects365", "objects365-v1"))
    assert read_names("lvis-v1") == lvis and read_names("objects365-v2") == new
    assert (len(lvis.names), lvis.names[:2], lvis.names[-1]) == (1203, ("aerosol_can", "air_conditioner"), "zucchini")
    assert not any(lvis.synonyms) and lvis.phrases[0] == ("aerosol can", 0)
    assert (len(new.names), len(old.names), new.names[:2]) == (365, 365, ("Person", "Sneakers"))
    assert dict(zip(new.names, new.synonyms, strict=True))["Bakset"] == ("Basket",) and not any(old.synonyms)


def test_lvis_is_14_texts_to_glip():
    folder = str(resources.files(MINILM_PACKAGE).joinpath("model"))  # its vocabulary is bert-base-uncased's, as GLIP's
    tokenizer = AutoTokenizer.from_pretrained(folder)
    lvis = read_names("lvis")
    texts = list(class_queries([t for t, _ in lvis.phrases], lambda t: token_counts(tokenizer, [t])[0], 256, SEPARATOR))
    assert len(texts) == 14 and sum(len(query.phrases) for query in texts) == 1203
    assert max(len(tokenizer(query.text)["input_ids"]) for query in texts) <= 256


def test_a_wheel_has_the_lists():
    root = Path(pipeline.__file__).parent
    tool = tomllib.loads((root.parent / "pyproject.toml").read_text())["tool"]
    packed = {path for glob in tool["setuptools"]["package-data"]["pipeline"] for path in root.glob(glob)}
    lists = set((root / "data/names").iterdir())
    assert len(lists) == 3 and lists <= packed


@pytest.mark.parametrize(
    ("word", "files"),
    [
        ("openimages", r"the \w+\.dataset\.json that ingest wrote"),
        ("v3det", r"V3Det\S*\.json or the v3det_train\.dataset\.json that ingest wrote"),
    ],
)
def test_a_set_whose_names_are_not_here_says_what_to_give(word, files):
    with pytest.raises(InputError, match=f"found the set '{word}', whose class names are not .*: {files}$"):
        read_names(word)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("", "found no name; want one or more"),
        (" . ", "found no name"),
        ("person. dog. Person", "found 'person' and 'Person'; want each text once"),
        ("traffic_light. traffic  light", "found 'traffic_light' and 'traffic  light'; want each"),
        ("person, forklift", "found ',' in the name 'person, forklift'; want names joined by '. '"),
        ("person: human. dog", "found ':' in the name"),
        ("person.forklift", "found '.' in the name"),
        ("dog. 7", "found the name '7'; want one with a letter"),
        ("dog. (weapon)", r"found the name '\(weapon\)'; want one with a letter outside parentheses"),
        ("missing.txt", "missing.txt: no such file"),
        ("no/such", "no/such: found no such file"),
    ],
)
def test_what_is_refused(spec, words):
    with pytest.raises(InputError, match=words):
        read_names(spec)


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("n.txt", "dog: hound\nhound", r"found 'hound' \(a synonym of 'dog'\) and 'hound'; want each text once"),
        ("n.txt", "dog: hound\ncat: Hound", r"and 'Hound' \(a synonym of 'cat'\); want each"),
        ("n.txt", "dog: bow\nbow (weapon)", "found 'bow .weapon.' of 'bow .weapon.' and of 'dog'; want a synonym that"),
        ("n.txt", "dog:", "line 1: found 'dog:'; want `name` or"),
        ("n.txt", "dog: a,,b", "line 1: found"),
        ("n.txt", "dog, cat", "line 1: found ',' in the name 'dog, cat'"),
        ("n.txt", "# only this", "found no name"),
        ("n.json", "[]", "found no name"),
        ("n.json", '["a", 3]', "found no list of names"),
        ("n.json", "[", "found no JSON"),
        ("n.json", '{"categories": [3]}', "found categories that are not COCO's"),
        ("n.yaml", "nc: 3", "found no list of names"),
        ("n.csv", "dog", "found a file of another kind"),
    ],
)
def test_files_that_are_refused(tmp_path, file, content, words):
    (tmp_path / file).write_text(content)
    with pytest.raises(InputError, match=words):
        read_names(str(tmp_path / file))


def test_classes_that_differ_in_parentheses_stay_apart_with_a_warning(caplog, tmp_path: Path):
    (tmp_path / "n.json").write_text(json.dumps(["bow_(weapon)", "bow_(decorative_ribbons)", "dog"]))
    with caplog.at_level(logging.WARNING, "glip_self_train"):
        names = read_names(str(tmp_path / "n.json"))
    assert names.prompt == "bow. bow. dog" and len(names.names) == 3
    assert "are all prompted as 'bow'" in caplog.text


def test_names_pass_through_a_footer(tmp_path):
    names = read_names("猫. forklift")
    schema = pa.schema([pa.field("x", pa.int32())])
    write_table(tmp_path / "a.parquet", schema.empty_table(), schema, {"names": names.model_dump_json()})
    assert footer_names(footer(read_table(tmp_path / "a.parquet", ["x"]).schema), "a.parquet") == names
    with pytest.raises(InputError, match=r"a\.parquet: found no name"):
        footer_names({"names": '{"names": []}'}, "a.parquet")
