"""How a page was made: version, command, date, machine and recipe, for its footer."""

from __future__ import annotations

import os
import platform
import re
import shlex
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from pipeline.config import SelfTrainConfig
from pipeline.config.secrets import PATTERN
from pipeline.system.devices import cores


def provenance(recipe: str = "") -> dict[str, str]:
    """Title -> text of the present command; ``recipe``: name or file, if there is one."""
    made = {"recipe": recipe} if recipe else {}
    return made | {
        "version": package_version(),
        "command": _command(),
        "date": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "machine": f"{platform.node()}, {platform.system()} {platform.machine()}, {cores()} cores, "
        f"Python {platform.python_version()}",
    }


def run_provenance(config: SelfTrainConfig) -> dict[str, str]:
    """Title -> text for a page that the same run writes with the same bytes: date, machine and command
    are on the run's page, ``link``.
    """
    return {"recipe": recipe_text(config), "version": package_version(), "link": "index.html"}


def recipe_text(config: SelfTrainConfig) -> str:
    """The recipe of a run in words."""
    return f"{'the demo' if config.demo is not None else 'own data'}, settings in the run's config.yaml"


def package_version() -> str:
    """Name and version of this package."""
    try:
        return f"glip-self-train {version('glip-self-train')}"
    except PackageNotFoundError:  # a checkout that is not installed
        return "glip-self-train, not installed"


def _command() -> str:
    """The command line, without addresses that may contain a secret."""
    program = Path(sys.argv[0])
    name = shlex.quote(program.name)
    if program.suffix == ".py":
        name = f"python -m {program.parent.name}" + (f".{program.stem}" if program.stem != "__main__" else "")
    arguments = (a if re.search(PATTERN, a) else "(address not shown)" for a in sys.argv[1:])
    return " ".join([name, *map(shlex.quote, arguments)]).replace(os.path.expanduser("~"), "~")
