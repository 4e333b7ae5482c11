"""Who may know whom: flows -> pipeline -> model; only flows knows Prefect; commands start without torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def imported(path: Path) -> set[str]:
    """Top-level names of everything that a module imports, anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize(
    ("room", "strangers"),
    [("model", {"pipeline", "flows", "prefect", "webdataset", "yaml", "spacy"}), ("pipeline", {"flows", "prefect"})],
)
def test_imports_run_one_way(room, strangers):
    files = sorted((ROOT / room).rglob("*.py"))
    assert len(files) > 10
    wrong = {str(f.relative_to(ROOT)): sorted(imported(f) & strangers) for f in files if imported(f) & strangers}
    assert not wrong


def test_no_flow_file_hides_a_package():
    assert not {"pipeline.py", "model.py"} & {p.name for p in (ROOT / "flows").rglob("*.py")}


HEAVY = {"torch", "spacy", "transformers", "prefect", "pyarrow", "matplotlib"}


@pytest.mark.parametrize(
    ("module", "needs"),
    [
        ("pipeline.config", set()),
        ("pipeline.cli.app", set()),
        ("pipeline.config.recipes", set()),
        ("flows.cli", set()),
        ("pipeline.stages.filter_boxes", {"pyarrow"}),
        ("pipeline.stages.ingest", {"pyarrow"}),
        ("pipeline.inspection.summary", {"pyarrow"}),
        ("pipeline.evaluation.compare", {"pyarrow"}),
        ("flows.self_train", {"prefect", "pyarrow"}),
    ],
)
def test_commands_start_without_the_heavy_libraries(module, needs):
    code = f"import sys, {module}; print(sorted({HEAVY!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == str(sorted(needs))


def test_most_modules_are_small_rooms():
    lengths = {
        p: len(p.read_text().splitlines())
        for room in ("model", "pipeline", "flows")
        for p in (ROOT / room).rglob("*.py")
    }
    assert {str(p): n for p, n in lengths.items() if n > 330} == {}
