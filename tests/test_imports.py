"""The rule of imports: rooms in levels, each importing only from its own and those below, and no circle of files."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LEVELS = (
    ("errors",),
    ("system",),
    ("io",),
    ("data", "execution", "config", "configs"),
    ("readers", "dedup", "drawing", "filtering", "annotators", "phrases", "demo"),
    ("labelling", "training", "evaluation"),
    ("inspection", "writers", "runs"),
    ("report",),
    ("stages",),
    ("cli",),
    ("flows", "__main__"),
)
"""Packages and modules of ``pipeline``, and ``flows``, from the bottom up; ``model`` imports none of them."""
LEVEL = {room: number for number, rooms in enumerate(LEVELS) for room in rooms}
MODEL_FROM = LEVEL["data"]
"""The lowest level that may import ``model``; ``data`` does for 16-bit images, when it meets one."""
NOT_IMPORTED_BY = {"model": {"prefect", "webdataset", "yaml", "spacy"}, "pipeline": {"prefect"}}
"""Libraries that a top-level package does without."""


def modules() -> dict[str, Path]:
    """The file of each module of ours, by its dotted name."""
    found = {}
    for top in ("model", "pipeline", "flows"):
        for path in (ROOT / top).rglob("*.py"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def imported(name: str) -> set[str]:
    """Dotted names of everything that a module imports, also inside functions and for type checkers only.

    ``from package import name`` counts as the module ``package.name`` where there is one of ours, else as ``package``.
    """
    path, names = MODULES[name], set()
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) + 1 - node.level] if node.level else []
            base = ".".join([*start, *([node.module] if node.module else [])])
            names |= {f"{base}.{a.name}" if f"{base}.{a.name}" in MODULES else base for a in node.names}
    return names


IMPORTED = {name: imported(name) for name in MODULES}


def room(module: str) -> str:
    """Name of a module's room in LEVELS."""
    top, *rest = module.split(".")
    return rest[0] if top == "pipeline" and rest else top


def test_every_room_has_a_level():
    rooms = {room(name) for name in MODULES} - {"model", "pipeline"}  # pipeline/__init__.py is empty
    assert rooms == set(LEVEL)
    assert not IMPORTED["pipeline"]


def test_rooms_import_only_their_own_level_and_those_below():
    def allowed(importer: str, other: str) -> bool:
        here, there = room(importer), room(other)
        if "model" in (here, there):
            return here == there or (there == "model" and LEVEL[here] >= MODEL_FROM)
        return LEVEL[there] <= LEVEL[here]

    assert [(a, b) for a in sorted(MODULES) for b in sorted(IMPORTED[a] & MODULES.keys()) if not allowed(a, b)] == []


def test_files_import_each_other_in_no_circle():
    TopologicalSorter({name: IMPORTED[name] & MODULES.keys() for name in MODULES}).prepare()  # raises CycleError


def test_only_flows_imports_prefect():
    tops = {name: {i.split(".")[0] for i in imports} for name, imports in IMPORTED.items()}
    wrong = {name: tops[name] & NOT_IMPORTED_BY.get(name.split(".")[0], set()) for name in MODULES}
    assert {name: libraries for name, libraries in wrong.items() if libraries} == {}


def test_no_flow_file_hides_a_package():
    assert not {"pipeline.py", "model.py"} & {p.name for p in (ROOT / "flows").rglob("*.py")}


HEAVY = {"torch", "spacy", "transformers", "prefect", "pyarrow", "matplotlib"}
LOADED = {
    "pipeline.config": set(),
    "pipeline.config.recipes": set(),
    "pipeline.cli.app": set(),
    "flows.cli": set(),
    "pipeline.stages.filter_boxes": {"pyarrow"},
    "pipeline.stages.ingest": {"pyarrow"},
    "pipeline.inspection.summary": {"pyarrow"},
    "pipeline.evaluation.compare": {"pyarrow"},
    "pipeline.report.view": {"pyarrow"},
    "flows.self_train": {"prefect", "pyarrow"},
}
"""The heavy libraries that are loaded after these imports, one after the other in one process."""


def test_commands_start_without_the_heavy_libraries():
    code = "import importlib, sys\n" + "".join(
        f"importlib.import_module({module!r}); print({module!r}, *sorted({HEAVY!r} & set(sys.modules)))\n"
        for module in LOADED
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.splitlines() == [" ".join([module, *sorted(needs)]) for module, needs in LOADED.items()]
