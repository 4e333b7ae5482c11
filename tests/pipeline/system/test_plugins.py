"""Registries: built-in names, registered ones, entry points, and names that are there twice."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest

from pipeline.errors import InputError
from pipeline.system import plugins
from pipeline.system.plugins import Registry

REGISTER = "from pipeline.system.plugins import Registry\nRegistry({group!r}, {{}}).register({name!r})(len)\n"


@pytest.fixture
def registry(request, tmp_path, monkeypatch) -> Registry[Callable]:
    """A registry of a group of this test's own, with a folder on the path."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delenv(plugins.MODULES, raising=False)
    plugins._entry_points.cache_clear()
    return Registry(request.node.name, {"len": "builtins:len"})


def add_entry_points(folder, registry, *lines: str, package: str = "mine") -> None:
    info = folder / f"{package}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("\n".join([f"[{registry.group}]", *lines]))


def test_built_in_names_load_nothing_else(registry, monkeypatch):
    monkeypatch.setenv(plugins.MODULES, "no_such_module")
    assert registry.get("len") is len and "len" in registry
    with pytest.raises(InputError, match=r"GLIP_SELF_TRAIN_PLUGINS: no_such_module cannot be imported .*PYTHONPATH"):
        registry.get("other")


def test_modules_of_the_variable_register(registry, tmp_path, monkeypatch):
    name = f"module_{registry.group.rsplit('.', 1)[1]}"
    (tmp_path / f"{name}.py").write_text(REGISTER.format(group=registry.group.split(".", 1)[1], name="mine"))
    assert registry.get("mine") is None and registry.names() == ["len"]
    monkeypatch.setenv(plugins.MODULES, f" {name}, ")
    assert registry.get("mine") is len and registry.names() == ["len", "mine"]


def test_entry_points_are_imported_when_used(registry, tmp_path):
    add_entry_points(tmp_path, registry, "max = builtins:max", "gone = no_such_module_at_all:x")
    assert registry.names() == ["len", "gone", "max"] and "no_such_module_at_all" not in sys.modules
    assert registry.get("max") is max
    with pytest.raises(
        InputError, match=r"gone cannot be imported from no_such_module_at_all:x \(entry point of mine\)"
    ):
        registry.get("gone")


def test_a_name_that_is_there_twice_is_an_error_that_names_both(registry, tmp_path):
    with pytest.raises(InputError, match=r"found 'len' twice, built in and .*test_plugins\.py:\d+"):
        registry.register("len")(max)
    registry.register("a")(max)
    with pytest.raises(InputError, match=r"found 'a' twice, .*test_plugins\.py:\d+ and .*test_plugins\.py:\d+; want"):
        registry.register("a")(min)
    add_entry_points(tmp_path, registry, "a = builtins:min")
    with pytest.raises(InputError, match=r"'a' twice, .*test_plugins\.py:\d+ and builtins:min \(entry point of mine\)"):
        registry.get("b")


def test_a_line_that_runs_again_replaces_what_it_registered(registry):
    for component in (max, min):
        registry.register("a")(component)
    assert registry.get("a") is min
