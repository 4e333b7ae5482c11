"""Tar shards: reading whatever a crawl left, counting what is broken; writing the same bytes every time."""

from __future__ import annotations

import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.errors import InputError
from pipeline.io.atomic import OutputFile, atomic_file
from pipeline.io.files import open_file
from pipeline.io.tar_writer import TarWriter


@dataclass
class TarSample:
    """Consecutive members of a shard with one key: ``files`` maps lower-case extensions to bytes.

    offsets: of each file's first byte in the shard; empty if the shard is compressed.
    """

    key: str
    files: dict[str, bytes] = field(default_factory=dict)
    offsets: dict[str, int] = field(default_factory=dict)


@dataclass
class TarProblems:
    """What was wrong with a shard, beside its samples: reason -> count, and the first few in words."""

    counts: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def add(self, reason: str, note: str) -> None:
        """Count a problem; the first ten are kept in words."""
        self.counts[reason] = self.counts.get(reason, 0) + 1
        if len(self.notes) < 10:
            self.notes.append(note)


class _HeaderWatch(tarfile.TarInfo):
    """tarfile ends quietly at a damaged header in the middle of an archive; this remembers how it ended."""

    @classmethod
    def fromtarfile(cls, tarfile_: Any) -> Any:  # the name of the parameter is tarfile's
        try:
            return super().fromtarfile(tarfile_)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            tarfile_.how_it_ended = "end"
            raise
        except tarfile.HeaderError as error:
            tarfile_.how_it_ended = (
                "truncated_tar" if "empty" in str(error) or "truncated" in str(error) else "bad_tar_header"
            )
            raise


def read_tar(shard: str | Path, problems: TarProblems | None = None) -> Iterator[TarSample]:
    """Samples of a WebDataset/img2dataset shard in order, from a local path or a URL, streaming.

    A shard that is cut off or damaged in the middle gives the samples before the damage, and the damage goes into
    ``problems`` (``truncated_tar``, ``bad_tar_header``). A key that comes back later in the shard, or a second file
    with the same extension, is given once and counted (``duplicate_key``, ``duplicate_member``). Names with ``..`` or
    a leading slash are counted (``unsafe_name``) and skipped; nothing is ever extracted to disk.

    Raises:
        InputError: the file is missing or is no tar archive at all.
    """
    from webdataset.tariterators import base_plus_ext  # brings torch along, which writing does without

    problems = problems if problems is not None else TarProblems()
    seen: set[str] = set()
    current: TarSample | None = None
    repeated: str | None = None
    for member, data, offset in _members(str(shard), problems):
        name = member.removeprefix("./")  # as `tar -cf 00000.tar .` calls them
        key, extension = base_plus_ext(name)
        if key is None:
            problems.add("member_without_extension", f"{name}: want KEY.EXT")
            continue
        if not name.isprintable() or not _is_utf8(name):
            problems.add("unsafe_name", f"{name!r}: not a name in UTF-8, or one with control characters")
            continue
        if key.startswith("/") or ".." in key.split("/"):
            problems.add("unsafe_name", f"{name}: leads outside the shard")
            continue
        if current is None or key != current.key:
            if current is not None:
                yield current
                current = None
            if key in seen:
                if repeated != key:
                    problems.add("duplicate_key", f"{key}: this key was in the shard before; the first one counts")
                repeated = key
                continue
            seen.add(key)
            current = TarSample(key)
        extension = extension.lower()
        if extension in current.files:
            problems.add("duplicate_member", f"{name}: second file of this name; the first one counts")
            continue
        current.files[extension] = data
        if offset is not None:
            current.offsets[extension] = offset
    if current is not None:
        yield current


def _is_utf8(text: str) -> bool:
    """tarfile stands for bytes that are no UTF-8 by lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _members(shard: str, problems: TarProblems) -> Iterator[tuple[str, bytes, int | None]]:
    try:
        raw = open_file(shard)
    except FileNotFoundError:
        raise InputError(f"{shard}: no such file") from None
    with raw:
        try:
            stream = tarfile.open(fileobj=raw, mode="r|*", tarinfo=_HeaderWatch)  # noqa: SIM115 - raw is closed
        except (tarfile.TarError, EOFError, OSError) as error:
            raise InputError(f"{shard}: not a tar archive ({error})") from None
        plain = stream.fileobj.comptype == "tar"  # type: ignore[attr-defined]
        last, file_name = "the beginning", shard.rsplit("/", 1)[-1]  # notes go into reports: no one's folders in them
        try:
            for info in stream:
                stream.members = []  # type: ignore[attr-defined]  # tarfile keeps every header otherwise
                if not info.isreg():
                    continue
                member = stream.extractfile(info)
                data = member.read() if member is not None else b""
                if len(data) != info.size:
                    raise tarfile.ReadError("unexpected end of data")
                last = info.name
                yield info.name, data, info.offset_data if plain else None
        except (tarfile.TarError, EOFError, OSError) as error:
            problems.add("truncated_tar", f"{file_name}: cut off after {last} ({error})")
            return
        ended = getattr(stream, "how_it_ended", "end")
        if ended != "end":
            problems.add(ended, f"{file_name}: no valid header after {last}, and no end mark")


class TarShard:
    """Writes a shard whose bytes depend on its samples alone: no times, no user names, members in order."""

    def __init__(self, stream: Any) -> None:
        self._writer = TarWriter(stream)

    def add(self, key: str, files: Mapping[str, bytes]) -> None:
        """Append one sample, its extensions sorted."""
        if "." in key.rsplit("/", 1)[-1]:
            raise InputError(f"key {key!r}: a key may not contain dots")
        self._writer.add([(f"{key}.{extension}", files[extension]) for extension in sorted(files)])

    def close(self) -> None:
        """Write the end mark."""
        self._writer.close()


Samples = Iterable[tuple[str, Mapping[str, bytes]]]


def write_tar(path: str | Path, samples: Samples) -> OutputFile:
    """Write a whole shard atomically, for a report that is committed after it; returns its size and digest."""
    with atomic_file(path, settled=False) as file:
        shard = TarShard(file)
        for key, files in samples:
            shard.add(key, files)
        shard.close()
        return file.summary()


def write_tars(path_of: Callable[[int], str], samples: Samples, max_bytes: int) -> list[OutputFile]:
    """Write samples into shards of at most ``max_bytes`` (or of a single sample that is larger), each atomically.

    There is always a first one, even of no samples. ``path_of`` gives the path of each, counted from 0.
    """
    waiting = iter(samples)
    held = next(waiting, None)
    written: list[OutputFile] = []
    while held is not None or not written:
        with atomic_file(path_of(len(written)), settled=False) as file:
            shard, used = TarShard(file), _END_BYTES
            while held is not None:
                cost = sum(_BLOCK + -(-len(data) // _BLOCK) * _BLOCK for data in held[1].values())
                if used > _END_BYTES and used + cost > max_bytes:
                    break
                shard.add(*held)
                used += cost
                held = next(waiting, None)
            shard.close()
            written.append(file.summary())
    return written


_BLOCK = 512
_END_BYTES = 20 * _BLOCK  # tarfile fills up its last record
