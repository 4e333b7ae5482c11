"""Copy of this package's code beside a saved model, for `trust_remote_code` without the package.

transformers copies a class's file and the files beside it that it imports; it knows no sub-packages,
so modules of one are written as files of the same folder: layers/swin.py as layers_swin.py.
"""

from __future__ import annotations

import re
from pathlib import Path

_PACKAGE = Path(__file__).parent
_IMPORT = re.compile(r"^(\s*from )(\.+)([\w.]+)( import )", re.MULTILINE)


def save_code(module: str, folder: str | Path) -> None:
    """Write a module of this package, such as "modeling_glip", and all that it imports into `folder`."""
    waiting, done = [_PACKAGE / f"{module}.py"], set[Path]()
    while waiting:
        file = waiting.pop()
        if file in done:
            continue
        done.add(file)

        def flatten(found: re.Match, file: Path = file) -> str:
            base = file.parents[len(found[2]) - 1]
            target = base / f"{found[3].replace('.', '/')}.py"
            waiting.append(target)
            return f"{found[1]}.{_flat(target)}{found[4]}"

        Path(folder, f"{_flat(file)}.py").write_text(_IMPORT.sub(flatten, file.read_text("utf-8")), "utf-8")


def _flat(file: Path) -> str:
    return "_".join(file.relative_to(_PACKAGE).with_suffix("").parts)
