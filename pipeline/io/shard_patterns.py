"""Expansion of shard lists: folders, globs and brace patterns, local or remote."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from pathlib import Path

from pipeline.errors import InputError
from pipeline.io.paths import is_url, stem


def expand_shards(patterns: str | Sequence[str], *, suffix: str = ".tar") -> list[str]:
    """Expand brace patterns, globs, folders and plain paths to shard paths, sorted by stem.

    All files of a brace pattern such as ``'crawl/{00000..00099}.tar'`` must exist; a glob
    ``'crawl/*.tar'`` or a folder ``'crawl'`` gives the existing files.

    Raises:
        InputError: a listed shard is missing, a pattern matches nothing, or two shards have the
            same stem (their outputs would overwrite one another).
    """
    import braceexpand

    shards: list[str] = []
    for pattern in [patterns] if isinstance(patterns, str) else list(patterns):
        try:
            paths = list(braceexpand.braceexpand(str(pattern)))
        except ValueError as error:
            raise InputError(f"{pattern}: {error}; want a pattern like 'crawl/{{00000..00099}}.tar'") from None
        for path in paths:
            shards += _expand_one(path, suffix)
    if not shards:
        raise InputError("no shards given; want paths, globs or a pattern like 'crawl/{00000..00099}.tar'")
    by_stem: dict[str, str] = {}
    for path in dict.fromkeys(shards):
        other = by_stem.setdefault(stem(path), path)
        if other != path:
            raise InputError(f"{other} and {path} have the same name, so their outputs would collide")
    return [by_stem[name] for name in sorted(by_stem)]


def _expand_one(path: str, suffix: str) -> list[str]:
    if is_url(path):
        return _expand_url(path, suffix)
    if Path(path).is_dir():
        matches = [str(p) for p in sorted(Path(path).glob(f"*{suffix}")) if not p.name.startswith(".")]
        if not matches:
            raise InputError(f"{path}: no *{suffix} files in this folder")
    elif any(c in path for c in "*?["):
        matches = sorted(glob.glob(path))
    elif not Path(path).is_file():
        raise InputError(f"{path}: no such file")
    else:
        return [path]
    if not matches:
        raise InputError(f"{path}: matches no file")
    return matches


def _expand_url(url: str, suffix: str) -> list[str]:
    """Shards of one URL. The existence of a single object is not checked until it is read."""
    from fnmatch import fnmatchcase

    from pipeline.io.files import listing

    folder, _, name = url.rpartition("/")
    if not any(c in name for c in "*?["):
        if name.endswith(suffix):
            return [url]
        matches = [u for u in listing(url, suffix) if not u.rsplit("/", 1)[-1].startswith(".")]
        if not matches:
            raise InputError(f"{url}: no *{suffix} objects there")
        return matches
    matches = [u for u in listing(folder, "") if fnmatchcase(u.rsplit("/", 1)[-1], name)]
    if not matches:
        raise InputError(f"{url}: matches no object")
    return matches
