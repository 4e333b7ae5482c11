"""The table of docs/phrases.md: every row is what the stage gives."""

import re
from pathlib import Path

import pytest

from pipeline.config import ParsePhrasesConfig
from pipeline.config.recipes import build
from pipeline.phrases.captions import skip_reason
from pipeline.phrases.find import find_phrases
from pipeline.phrases.lexicons import OWL_ST
from pipeline.phrases.wordnet import nonvisual_nouns

PAGE = (Path(__file__).parents[3] / "docs" / "phrases.md").read_text()
ROWS = re.findall(r"^\| (defaults|`[^`]+=[^`]*`) \| `([^`]+)` \|(.*)\|$", PAGE, re.MULTILINE)


@pytest.mark.parametrize(("changes", "caption", "shown"), ROWS, ids=[f"{a} {b}" for a, b, _ in ROWS])
def test_rows(changes, caption, shown):
    config = build(ParsePhrasesConfig, {}, changes.strip("`").replace("defaults", "").split(), where="parse_phrases")
    found = []
    if not (config.drop_boilerplate and skip_reason(caption)):
        (parsed,) = find_phrases([caption], config)
        found = [caption[start:end] for start, end, _ in parsed.phrases]
    assert found == re.findall(r"`([^`]+)`", shown)


def test_every_setting_is_on_the_page():
    assert len(ROWS) == 19
    for name in set(ParsePhrasesConfig.model_fields) - {"max_caption_chars"}:
        assert re.search(rf"\b{name}\b", PAGE), name


def test_the_sizes_of_the_lists_are_right():
    assert f"{len(nonvisual_nouns()):,} nouns" in PAGE and f"the {len(OWL_ST)} generic words" in PAGE
