"""Every section of docs/glip-spec.md that the code, the tests or a page cites is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "glip-spec.md"
SUFFIXES = {".py", ".md", ".yaml", ".toml", ".html"}
NUMBER = r"(?:sections? )?\d+(?:\.\d+)?"
CITATION = re.compile(rf"\bspec(?:ification)?:? ({NUMBER}(?:(?:,| and|, and| or| to) {NUMBER})*)", re.IGNORECASE)


def citations(text: str) -> list[list[str]]:
    """Section numbers per citation: "GLIP spec 9.3", "spec sections 3 and 6", "SPEC 5.1, 5.2"."""
    plain = re.sub(r"\s+(?:# )?", " ", text)  # a citation may run over the end of a line, of a comment too
    return [re.findall(r"\d+(?:\.\d+)?", match[1]) for match in CITATION.finditer(plain)]


def cited() -> dict[str, list[list[str]]]:
    """The citations of every file that has some."""
    files = [ROOT / "README.md"]
    for folder in ("model", "pipeline", "flows", "tests", "docs", "benchmarks"):
        files += [f for f in (ROOT / folder).rglob("*") if f.suffix in SUFFIXES and f != Path(__file__)]
    found = {str(f.relative_to(ROOT)): citations(f.read_text()) for f in files}
    return {name: groups for name, groups in found.items() if groups}


@pytest.mark.parametrize(
    ("text", "sections"),
    [
        ("as published (GLIP spec 9.3).", [["9.3"]]),
        ("# GLIP spec\n    # section 4: the vocabulary", [["4"]]),
        ("SPEC 4.2 and spec 13; Spec 0.8: text", [["4.2"], ["13"], ["0.8"]]),
        ("GLIP spec sections 3 and 6; GLIP spec 0.6 and\nsection 5", [["3", "6"], ["0.6", "5"]]),
        ("GLIP spec 5.1, 5.2, and 16", [["5.1", "5.2", "16"]]),
        ("spec.names[0], find_spec(4), git-lfs.github.com/spec/v1, respec 5", []),
    ],
)
def test_every_way_of_citing_is_read(text, sections):
    assert citations(text) == sections


def test_cited_sections_exist():
    headings = set(re.findall(r"^#{2,3} (\d+(?:\.\d+)?)[. ]", PAGE.read_text(), re.MULTILINE))
    found = cited()
    assert sum(map(len, found.values())) > 30 and "9.3" in headings
    absent = {name: {n for group in groups for n in group} - headings for name, groups in found.items()}
    assert {name: sorted(numbers) for name, numbers in absent.items() if numbers} == {}


def test_no_citation_is_without_a_section():
    for folder in ("model", "pipeline", "flows", "tests"):
        for file in (ROOT / folder).rglob("*.py"):
            if file != Path(__file__):
                text = file.read_text()
                assert text.count("GLIP spec") <= len(citations(text)), file
