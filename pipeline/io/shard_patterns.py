"""Expansion of shard lists: folders, globs and brace patterns, on disks and behind URLs."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from pathlib import Path

from pipeline.errors import InputError
from pipeline.io.paths import is_url, stem


def expand_shards(patterns: str | Sequence[str], *, suffix: str = ".tar") -> list[str]:
    """All shards that brace patterns, globs, folders or plain paths name, sorted by name.

    ``'crawl/{00000..00099}.tar'`` names exactly a hundred files, and each must be there; ``'crawl/*.tar'`` and
    ``'crawl'`` take what is there.

    Raises:
        InputError: a named shard is missing, a pattern matches nothing, or two shards have the same stem (their
            outputs would overwrite one another).
    """
    import braceexpand

    found: list[str] = []
    for pattern in [patterns] if isinstance(patterns, str) else list(patterns):
        try:
            paths = list(braceexpand.braceexpand(str(pattern)))
        except ValueError as error:
            raise InputError(f"{pattern}: {error}; want a pattern like 'crawl/{{00000..00099}}.tar'") from None
        for path in paths:
            found += _expand_one(path, suffix)
    if not found:
        raise InputError("no shards given; want paths, globs or a pattern like 'crawl/{00000..00099}.tar'")
    by_stem: dict[str, str] = {}
    for path in dict.fromkeys(found):
        other = by_stem.setdefault(stem(path), path)
        if other != path:
            raise InputError(f"{other} and {path} have the same name, so their outputs would collide")
    return [by_stem[name] for name in sorted(by_stem)]


def _expand_one(path: str, suffix: str) -> list[str]:
    if is_url(path):
        return _expand_url(path, suffix)
    if Path(path).is_dir():
        hits = [str(p) for p in sorted(Path(path).glob(f"*{suffix}")) if not p.name.startswith(".")]
        if not hits:
            raise InputError(f"{path}: no *{suffix} files in this folder")
    elif any(c in path for c in "*?["):
        hits = sorted(glob.glob(path))
    elif not Path(path).is_file():
        raise InputError(f"{path}: no such file")
    else:
        return [path]
    if not hits:
        raise InputError(f"{path}: matches no file")
    return hits


def _expand_url(url: str, suffix: str) -> list[str]:
    """A URL that names a file is taken at its word: whether it is there is seen when it is read."""
    from fnmatch import fnmatchcase

    from pipeline.io.files import listing

    folder, _, name = url.rpartition("/")
    if not any(c in name for c in "*?["):
        if name.endswith(suffix):
            return [url]
        hits = [u for u in listing(url, suffix) if not u.rsplit("/", 1)[-1].startswith(".")]
        if not hits:
            raise InputError(f"{url}: no *{suffix} objects there")
        return hits
    hits = [u for u in listing(folder, "") if fnmatchcase(u.rsplit("/", 1)[-1], name)]
    if not hits:
        raise InputError(f"{url}: matches no object")
    return hits
