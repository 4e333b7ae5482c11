"""Comparison of local or remote files with the sizes and checksums stated in a manifest."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Literal, NamedTuple

from pipeline.data.manifests import ExpectedFile, SetManifest
from pipeline.io.files import file_size, open_file
from pipeline.io.paths import parent, resolve_path


class FileCheck(NamedTuple):
    """Result for one file. ``unstated``: the file exists, but no size or checksum is published."""

    name: str
    state: Literal["ok", "differs", "absent", "unstated"]
    detail: str
    path: str | None = None


def check_files(sets: Mapping[str, SetManifest], root: str, *, sizes_only: bool = False) -> Iterator[FileCheck]:
    """Check each file listed by the sets, once, in their order.

    Args:
        root: folder or URL that the manifest's paths are relative to.
        sizes_only: compare only the sizes, without reading the files.
    """
    seen = set()
    for entry in sets.values():
        for file in entry.files:
            if file not in seen:
                seen.add(file)
                yield _check(file, _candidates(file, entry, root), sizes_only)


def _candidates(file: ExpectedFile, entry: SetManifest, root: str) -> list[str]:
    """Possible locations: the stated ``path``, else in the root or beside the set's other files."""
    if file.path:
        return [resolve_path(root, file.path)]
    images = entry.images_folder or []
    images = [images] if isinstance(images, str) else list(images.values() if isinstance(images, dict) else images)
    others = [*filter(None, [entry.annotations, entry.shards_pattern]), *entry.companions.values(), *images]
    folders = [root, *(parent(resolve_path(root, path)) for path in others)]
    return list(dict.fromkeys(resolve_path(folder, file.name) for folder in folders))


def _check(file: ExpectedFile, candidates: list[str], sizes_only: bool) -> FileCheck:
    for path in candidates:
        size = file_size(path)
        if size is None:
            continue
        wanted = {kind: value for kind in ("md5", "sha256") if (value := getattr(file, kind))}
        if file.bytes is None and (sizes_only or not wanted):
            return FileCheck(file.name, "unstated", f"{size:,} bytes; no size or checksum in the manifest", path)
        source = f" (as stated by {file.checksum_source})" if file.checksum_source else ""
        if file.bytes is not None and size != file.bytes:
            return FileCheck(file.name, "differs", f"{size:,} bytes; want {file.bytes:,}{source}", path)
        if sizes_only or not wanted:
            return FileCheck(file.name, "ok", f"{size:,} bytes", path)
        for kind, checksum in _checksums(path, wanted).items():
            if checksum != wanted[kind]:
                return FileCheck(file.name, "differs", f"{kind} {checksum}; want {wanted[kind]}{source}", path)
        return FileCheck(file.name, "ok", f"{size:,} bytes, {' and '.join(wanted)}", path)
    elsewhere = " nor beside the set's files" if candidates[1:] else ""
    return FileCheck(file.name, "absent", f"not at {candidates[0]}{elsewhere}")


def _checksums(path: str, kinds: Iterable[str]) -> dict[str, str]:
    """Checksums of a file's content, computed in one pass."""
    states = {kind: hashlib.new(kind, usedforsecurity=False) for kind in kinds}
    with open_file(path) as file:
        while block := file.read(1 << 20):
            for state in states.values():
                state.update(block)
    return {kind: state.hexdigest() for kind, state in states.items()}
