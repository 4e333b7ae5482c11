"""Tar shards: a tolerant streaming reader that counts damage, and a deterministic writer."""

from __future__ import annotations

import re
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.errors import InputError
from pipeline.io.atomic import OutputFile, atomic_file
from pipeline.io.files import open_file
from pipeline.io.paths import is_hidden
from pipeline.io.tar_writer import TarWriter
from pipeline.system.library_internals import EndRecordingTarInfo, forget_members, is_uncompressed

_KEY_AND_EXTENSION = re.compile(r"((?:.*/|)[^.]+)[.]([^/]*)$")


def split_name(name: str) -> tuple[str, str] | None:
    """Split a member's name into key and extension, at the first dot after the folders; None: it has none of them.

    As webdataset's `base_plus_ext`, whose import takes torch's seconds.
    """
    found = _KEY_AND_EXTENSION.match(name)
    return found and (found[1], found[2])


@dataclass
class TarSample:
    """Consecutive members of a shard with one key.

    files: lower-case extension -> content. offsets: extension -> byte offset of the content in the
    shard; empty if the shard is compressed or virtual. path: of a loose image, as its folder or list has it.
    """

    key: str
    files: dict[str, bytes] = field(default_factory=dict)
    offsets: dict[str, int] = field(default_factory=dict)
    path: str = ""


@dataclass
class TarProblems:
    """Problems of a shard that belong to no sample: reason -> count, and messages of the first ten."""

    counts: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def add(self, reason: str, note: str) -> None:
        """Count a problem, and keep its message if it is among the first ten."""
        self.counts[reason] = self.counts.get(reason, 0) + 1
        if len(self.notes) < 10:
            self.notes.append(note)

    def add_once(self, reason: str, note: str) -> None:
        """Count a problem, and keep its message if it is the first of its reason."""
        if reason in self.counts:
            self.counts[reason] += 1
        else:
            self.add(reason, note)


def read_tar(shard: str | Path, problems: TarProblems | None = None) -> Iterator[TarSample]:
    """Stream the samples of a WebDataset/img2dataset shard, a local path or a URL, in order.

    A truncated or damaged shard yields the samples before the damage, which is counted in
    ``problems`` (``truncated_tar``, ``bad_tar_header``). Of a repeated key and of a repeated
    extension in a sample only the first is used; the rest are counted (``duplicate_key``,
    ``duplicate_member``). Names with ``..`` or a leading slash are skipped and counted
    (``unsafe_name``), as are hidden ones (``hidden_file``: macOS's ``._0001.jpg``) and
    links (``not_a_file``). Nothing is extracted to disk.

    Raises:
        InputError: the file is missing or is not a tar archive.
    """
    problems = problems if problems is not None else TarProblems()
    seen: set[str] = set()
    current: TarSample | None = None
    repeated: str | None = None
    for member, data, offset in _members(str(shard), problems):
        name = member.removeprefix("./")  # as `tar -cf 00000.tar .` calls them
        if is_hidden(name):
            problems.add_once("hidden_file", f"{name}: hidden files are no data")
            continue
        if (parts := split_name(name)) is None:
            problems.add("member_without_extension", f"{name}: want KEY.EXT")
            continue
        key, extension = parts
        if not name.isprintable():  # tarfile decodes bytes that are not UTF-8 to lone surrogates, not printable
            problems.add("unsafe_name", f"{name!r}: name is not UTF-8 or has control characters")
            continue
        if key.startswith("/") or ".." in key.split("/"):
            problems.add("unsafe_name", f"{name}: path outside the shard")
            continue
        if current is None or key != current.key:
            if current is not None:
                yield current
                current = None
            if key in seen:
                if repeated != key:
                    problems.add("duplicate_key", f"{key}: repeated key, apart from its first files, which are used")
                repeated = key
                continue
            seen.add(key)
            current = TarSample(key)
        extension = extension.lower()
        if extension in current.files:
            problems.add("duplicate_member", f"{name}: repeated name; the first file is used")
            continue
        current.files[extension] = data
        if offset is not None:
            current.offsets[extension] = offset
    if current is not None:
        yield current


def _members(shard: str, problems: TarProblems) -> Iterator[tuple[str, bytes, int | None]]:
    try:
        raw = open_file(shard)
    except FileNotFoundError:
        raise InputError(f"{shard}: no such file") from None
    with raw:
        try:
            stream = tarfile.open(fileobj=raw, mode="r|*", tarinfo=EndRecordingTarInfo)  # noqa: SIM115 - raw is closed
        except (tarfile.TarError, EOFError, OSError) as error:
            raise InputError(f"{shard}: not a tar archive ({error})") from None
        uncompressed = is_uncompressed(stream)
        last, file_name = "the beginning", shard.rsplit("/", 1)[-1]  # notes go into reports, which have no folders
        try:
            for info in stream:
                forget_members(stream)
                if not info.isreg():
                    if not info.isdir():
                        problems.add("not_a_file", f"{info.name}: a link or device; want a file's content")
                    continue
                member = stream.extractfile(info)
                data = member.read() if member is not None else b""
                if len(data) != info.size:
                    raise tarfile.ReadError("unexpected end of data")
                last = info.name
                yield info.name, data, info.offset_data if uncompressed else None
        except (tarfile.TarError, EOFError, OSError) as error:
            problems.add("truncated_tar", f"{file_name}: cut off after {last} ({error})")
            return
        end = getattr(stream, "end", "end_mark")
        if end != "end_mark":
            problems.add(end, f"{file_name}: no valid header after {last}, and no end mark")


Samples = Iterable[tuple[str, Mapping[str, bytes]]]
"""(key, extension -> content) of each sample."""


def _members_of(key: str, files: Mapping[str, bytes]) -> list[tuple[str, bytes]]:
    """(name, content) of a sample's files, sorted by extension."""
    if "." in key.rsplit("/", 1)[-1]:
        raise InputError(f"key {key!r}: a key may not contain dots")
    return [(f"{key}.{extension}", files[extension]) for extension in sorted(files)]


def write_tar(path: str | Path, samples: Samples) -> OutputFile:
    """Write a shard atomically; its report must be committed after it. Returns size and digest."""
    with atomic_file(path, durable_name=False) as file:
        tar = TarWriter(file)
        for key, files in samples:
            tar.add(_members_of(key, files))
        tar.close()
        return file.summary()


def write_tars(path_of: Callable[[int], str], samples: Samples, max_bytes: int) -> list[OutputFile]:
    """Write samples atomically into shards of at most ``max_bytes``, or of one larger sample.

    At least one shard is written, even without samples. ``path_of``: shard number from 0 -> path.
    """
    remaining = iter(samples)
    sample = next(remaining, None)
    written: list[OutputFile] = []
    while sample is not None or not written:
        with atomic_file(path_of(len(written)), durable_name=False) as file:
            tar, used = TarWriter(file), tarfile.RECORDSIZE
            while sample is not None:
                blocks = sum(1 + -(-len(data) // tarfile.BLOCKSIZE) for data in sample[1].values())
                size = blocks * tarfile.BLOCKSIZE
                if used > tarfile.RECORDSIZE and used + size > max_bytes:
                    break
                tar.add(_members_of(*sample))
                used += size
                sample = next(remaining, None)
            tar.close()
            written.append(file.summary())
    return written
