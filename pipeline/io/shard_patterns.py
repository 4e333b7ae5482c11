"""Expansion of shard lists: folders, globs and brace patterns, local or remote."""

from __future__ import annotations

import glob
import logging
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from pipeline.errors import InputError
from pipeline.io.files import listing
from pipeline.io.paths import COMPRESSED_TARS, is_hidden, is_image_name, is_url, join, stem
from pipeline.io.virtual_shards import LISTS, TABLE, relist, virtual_shard, virtual_shards

log = logging.getLogger("glip_self_train")
_GLOB = "*?["
_NAMED = 3


def expand_crawl(patterns: str | Sequence[str]) -> list[str]:
    """Expand patterns as :func:`expand_shards`, and images that are in no tar to virtual shards.

    Those are: a folder of images at any depth, a list of paths (.txt, .lst), and Parquet tables with an
    image column (:mod:`pipeline.io.virtual_shards`). A virtual shard is itself, if its source has the same
    images still.

    Raises:
        InputError: as expand_shards; also images or tables at a URL.
    """
    return _expand(patterns, ".tar", loose=True)


def expand_shards(patterns: str | Sequence[str], *, suffix: str = ".tar") -> list[str]:
    """Expand brace patterns, globs, folders and plain paths to shard paths, sorted by stem.

    All files of a brace pattern such as ``'crawl/{00000..00099}.tar'`` must exist; a glob
    ``'crawl/*.tar'`` or a folder ``'crawl'`` gives the existing files. A path that exists, or the
    part of a pattern that is an existing folder, is itself: ``'crawl[1]/*.tar'``. With suffix .tar
    a folder's compressed tars count too. Dangling links among several files are left out, with a
    warning.

    Raises:
        InputError: a listed shard is missing, a pattern matches nothing, or two shards have the
            same stem (their outputs would overwrite one another).
    """
    return _expand(patterns, suffix, loose=False)


def _expand(patterns: str | Sequence[str], suffix: str, *, loose: bool) -> list[str]:
    shards: list[str] = []
    given = [patterns] if isinstance(patterns, str) else list(patterns)
    relist({shard.source for pattern in given if loose and (shard := virtual_shard(pattern)) is not None})
    for pattern in given:
        if loose and (shard := virtual_shard(pattern)) is not None:
            shard.open()
            shards.append(str(pattern))
            continue
        folder, rest = ("", str(pattern)) if is_url(pattern) else _existing_part(str(pattern))
        for path in _expand_braces(rest, str(pattern)):
            shards += _expand_url(path, suffix) if is_url(path) else _expand_path(folder, path, suffix, loose)
    if not shards:
        raise InputError("no shards given; want paths, globs or a pattern like 'crawl/{00000..00099}.tar'")
    by_stem: dict[str, str] = {}
    for path in dict.fromkeys(shards):
        other = by_stem.setdefault(stem(path), path)
        if other != path:
            raise InputError(f"{other} and {path} have the same name, so their outputs would collide")
    return [by_stem[name] for name in sorted(by_stem)]


def is_shard(name: str, suffix: str = ".tar") -> bool:
    """Whether a file name is a shard's; a tar may be compressed."""
    return not is_hidden(name) and (name.endswith(suffix) or (suffix == ".tar" and name.endswith(COMPRESSED_TARS)))


def shards_in(folder: str | Path, suffix: str = ".tar") -> list[str]:
    """The shards of a folder or URL, sorted; may be []."""
    return _without_dangling(p for p in listing(folder, "") if is_shard(p.rsplit("/", 1)[-1], suffix))


def _existing_part(pattern: str) -> tuple[str, str]:
    """(longest beginning of a local pattern that exists, rest)."""
    parts = pattern.split("/")
    for n in range(len(parts), 0, -1):
        if (path := "/".join(parts[:n])) and os.path.exists(path):
            return path, "/".join(parts[n:])
    return "", pattern


def _expand_braces(rest: str, pattern: str) -> list[str]:
    import braceexpand

    try:
        return list(braceexpand.braceexpand(rest))
    except ValueError as error:
        raise InputError(f"{pattern}: {error}; want a pattern like 'crawl/{{00000..00099}}.tar'") from None


def _expand_path(folder: str, rest: str, suffix: str, loose: bool) -> list[str]:
    """Shards of ``folder/rest``; only the rest may be a glob."""
    path = join(folder, rest) if folder and rest else folder or rest
    if Path(path).exists():
        return _of_existing(path, suffix, loose)
    if not any(c in rest for c in _GLOB):
        raise InputError(f"{path}: no such file{_target(path)}")
    matches = _without_dangling(sorted(glob.glob(join(glob.escape(folder), rest) if folder else rest)))
    if not matches:
        raise InputError(f"{path}: matches no file")
    return [shard for match in matches for shard in _of_existing(match, suffix, loose)] if loose else matches


def _of_existing(path: str, suffix: str, loose: bool) -> list[str]:
    """Shards of a folder, or of a file that is one, is a list of images or is an image table."""
    if Path(path).is_dir():
        matches, nor = shards_in(path, suffix), ""
        if loose and matches and any(map(is_image_name, os.listdir(path))):
            log.warning("%s: has *.tar shards, which are read, and images beside them, which are not", path)
        if loose and not matches:
            matches, nor = virtual_shards(path), ", nor images or image tables in or below it"
        if not matches:
            raise InputError(f"{path}: no *{suffix} files in this folder{nor}{_instead(path)}")
        return matches
    if loose and is_image_name(path):
        raise InputError(f"{path}: found an image; want its folder, or a file with the paths of images (.txt, .lst)")
    return virtual_shards(path) if loose and path.endswith((*LISTS, TABLE)) else [path]


def _without_dangling(paths: Iterable[str]) -> list[str]:
    whole = []
    for path in paths:
        if is_url(path) or os.path.exists(path):
            whole.append(path)
        else:
            log.warning("%s: left out: no such file%s", path, _target(path))
    return whole


def _target(path: str) -> str:
    return f" (a link to {os.readlink(path)})" if os.path.islink(path) else ""


def _instead(folder: str) -> str:
    """Words on the files that a folder without shards has."""
    names = sorted(name for name in os.listdir(folder) if not is_hidden(name))
    more = f" and {len(names) - _NAMED:,} more" if len(names) > _NAMED else ""
    return f"; found {', '.join(names[:_NAMED]) or 'nothing'}{more}"


def _expand_url(url: str, suffix: str) -> list[str]:
    """Shards of one URL. The existence of a single object is not checked until it is read."""
    from fnmatch import fnmatchcase

    folder, _, name = url.rpartition("/")
    if not any(c in name for c in _GLOB):
        if is_shard(name, suffix):
            return [url]
        matches = [] if name.endswith((*LISTS, TABLE)) and suffix == ".tar" else shards_in(url, suffix)
        if not matches:
            local = "; images, lists and tables are read from a file system only" if suffix == ".tar" else ""
            raise InputError(f"{url}: no *{suffix} objects there{local}")
        return matches
    matches = [u for u in listing(folder, "") if fnmatchcase(u.rsplit("/", 1)[-1], name)]
    if not matches:
        raise InputError(f"{url}: matches no object")
    return matches
