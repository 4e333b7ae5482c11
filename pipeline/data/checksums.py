"""Files that lie here against the sizes and checksums that a manifest states."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Literal, NamedTuple

from pipeline.data.manifests import ExpectedFile, SetManifest
from pipeline.io.files import file_size, open_file
from pipeline.io.paths import located, parent


class FileCheck(NamedTuple):
    """One file. ``unstated``: it is there, and neither size nor checksum is published. ``words``: what was found."""

    name: str
    state: Literal["ok", "differs", "absent", "unstated"]
    words: str
    path: str | None = None


def check_files(sets: Mapping[str, SetManifest], root: str, *, sizes_only: bool = False) -> Iterator[FileCheck]:
    """Each file that the sets name, once, in their order.

    Args:
        root: folder or URL that the manifest's paths are relative to.
        sizes_only: compare sizes alone, and read no file.
    """
    seen = set()
    for entry in sets.values():
        for file in entry.files:
            if file not in seen:
                seen.add(file)
                yield _check(file, _places(file, entry, root), sizes_only)


def _places(file: ExpectedFile, entry: SetManifest, root: str) -> list[str]:
    """Where the file may lie: at its ``path``, else by its name in the root and in the folders of the set's own files."""
    if file.path:
        return [located(root, file.path)]
    folders = entry.images_folder or []
    folders = (
        [folders] if isinstance(folders, str) else list(folders.values() if isinstance(folders, dict) else folders)
    )
    beside = [*filter(None, [entry.annotations, entry.shards_pattern]), *entry.companions.values(), *folders]
    return list(
        dict.fromkeys(located(folder, file.name) for folder in [root, *(parent(located(root, p)) for p in beside)])
    )


def _check(file: ExpectedFile, places: list[str], sizes_only: bool) -> FileCheck:
    for path in places:
        size = file_size(path)
        if size is None:
            continue
        wanted = {kind: value for kind in ("md5", "sha256") if (value := getattr(file, kind))}
        if file.bytes is None and (sizes_only or not wanted):
            return FileCheck(file.name, "unstated", f"{size:,} bytes; the manifest states nothing to compare", path)
        said = f" (as stated by {file.checksum_source})" if file.checksum_source else ""
        if file.bytes is not None and size != file.bytes:
            return FileCheck(file.name, "differs", f"{size:,} bytes; want {file.bytes:,}{said}", path)
        if sizes_only or not wanted:
            return FileCheck(file.name, "ok", f"{size:,} bytes", path)
        for kind, found in _sums(path, wanted).items():
            if found != wanted[kind]:
                return FileCheck(file.name, "differs", f"{kind} {found}; want {wanted[kind]}{said}", path)
        return FileCheck(file.name, "ok", f"{size:,} bytes, {' and '.join(wanted)}", path)
    return FileCheck(file.name, "absent", f"not at {places[0]}" + (" nor beside the set's files" if places[1:] else ""))


def _sums(path: str, kinds: Mapping[str, str]) -> dict[str, str]:
    """Checksums of the content, in one reading."""
    states = {kind: hashlib.new(kind, usedforsecurity=False) for kind in kinds}
    with open_file(path) as file:
        while block := file.read(1 << 20):
            for state in states.values():
                state.update(block)
    return {kind: state.hexdigest() for kind, state in states.items()}
