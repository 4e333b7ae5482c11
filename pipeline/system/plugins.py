"""Registries of components by name: built-in ones and the user's (docs/python.md).

The user's are entry points of the registry's group, or registered by modules that the environment
variable GLIP_SELF_TRAIN_PLUGINS names. Every process, also a child, finds them by itself, once, and
only where a name is not built in.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from functools import lru_cache
from importlib import import_module, metadata
from pkgutil import resolve_name
from typing import Any, Generic, TypeVar

from pipeline.errors import InputError

MODULES = "GLIP_SELF_TRAIN_PLUGINS"
"""Environment variable: modules to import, with commas between them. They must be installed or on PYTHONPATH."""
_REGISTERED: dict[str, dict[str, tuple[str, Callable[[], Any]]]] = {}
"""Group -> name -> (origin, function that returns the component)."""

T = TypeVar("T")


class Registry(Generic[T]):
    """Components of one group, such as ``glip_self_train.readers``. builtin: name -> ``module:attribute``."""

    def __init__(self, group: str, builtin: Mapping[str, str]) -> None:
        self.group, self.builtin = f"glip_self_train.{group}", builtin
        self._registered = _REGISTERED.setdefault(self.group, {})

    def register(self, name: str) -> Callable[[T], T]:
        """Decorate a component, or call the result with one, to register it under a name.

        Raises:
            InputError: the name is built in, or registered by other code.
        """
        caller = sys._getframe(1)
        # a module that is imported again, as a spawned process does with the main one, replaces what it registered
        file = caller.f_globals.get("__file__")
        origin = f"{file}:{caller.f_lineno}" if file else str(caller.f_globals.get("__name__"))

        def add(component: T) -> T:
            self._add(name, origin, lambda: component)
            return component

        return add

    def get(self, name: str) -> T | None:
        """Return a name's component, imported if need be, or None if there is none.

        Raises:
            InputError: a module or an entry point cannot be imported, or a name is registered twice.
        """
        if name in self.builtin:
            component: T | None = resolve_name(self.builtin[name])
            return component
        origin, load = self._others().get(name, ("", lambda: None))
        try:
            component = load()
        except (ImportError, AttributeError) as error:
            raise InputError(f"{self.group}: {name} cannot be imported from {origin} ({error})") from None
        return component

    def require(self, name: str, title: str) -> T:
        """Return a name's component.

        Raises:
            InputError: as :meth:`get`; or there is none of this name (``title`` says what was to be named).
        """
        component = self.get(name)
        if component is None:
            raise InputError(f"{title} {name}: want one of {', '.join(self.names())}")
        return component

    def names(self) -> list[str]:
        """Return all names, the built-in ones first."""
        return [*self.builtin, *sorted(self._others())]

    def __contains__(self, name: str) -> bool:
        return name in self.builtin or name in self._others()

    def _others(self) -> dict[str, tuple[str, Callable[[], Any]]]:
        _import_modules(os.environ.get(MODULES, ""))
        for point in _entry_points(self.group):
            package = point.dist.name if point.dist else "unknown"
            self._add(point.name, f"{point.value} (entry point of {package})", point.load)
        return self._registered

    def _add(self, name: str, origin: str, load: Callable[[], Any]) -> None:
        first = "built in" if name in self.builtin else self._registered.get(name, (origin, load))[0]
        if first != origin:
            raise InputError(f"{self.group}: found {name!r} twice, {first} and {origin}; want a name once")
        self._registered[name] = origin, load


@lru_cache
def _import_modules(names: str) -> None:
    for name in filter(None, map(str.strip, names.split(","))):
        try:
            import_module(name)
        except ImportError as error:
            raise InputError(
                f"{MODULES}: {name} cannot be imported ({error}); want modules that are installed or on PYTHONPATH"
            ) from None


@lru_cache
def _entry_points(group: str) -> tuple[metadata.EntryPoint, ...]:
    return tuple(metadata.entry_points(group=group))
