"""Virtual shards: images that are in no tar, numbered off into shards of IMAGES_PER_SHARD.

A source is a folder of images, a list of their paths, or a Parquet table with an image column. Its shards
are strings ``SOURCE/#DIGEST/NAME-00003`` (no file has such a path): the digest is of the names of the
shard's images, so that a process that lists the source later either reads the same images or raises.
``stem`` of the string names the shard's outputs. Shards hold the sorted paths (a list's: in its order), a
thousand each, so they are stable while the names are.
"""

from __future__ import annotations

import errno
import hashlib
import os
import posixpath
import re
import stat
import threading
from bisect import bisect
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from pipeline.errors import InputError
from pipeline.io.paths import COMPRESSED_TARS, IMAGE_EXTENSIONS, is_hidden, is_image_name, is_url, stem

IMAGES_PER_SHARD = 1000
LISTS, TABLE = (".txt", ".lst"), ".parquet"
SIDECARS = ("txt", "json")
"""Extensions of files that belong to the image of the same name: img2dataset's ``files`` layout."""
WANTED = (
    "want *.tar shards, a folder of images (*."
    + ", *.".join(IMAGE_EXTENSIONS)
    + "), a list of their paths (.txt, .lst), or Parquet tables with an image column (a struct of `bytes` and `path`)"
)
_FORM = re.compile(r"(.+)/#([0-9a-f]{12})/([^/.]+-(\d{5,}))", re.DOTALL)
_CACHED = 16
"""Number of sources whose listing a process keeps."""


@dataclass(frozen=True)
class LooseImages:
    """Images of a folder or list.

    Attributes:
        folder: folder that the paths are relative to.
        paths: of the images; of a list also absolute ones.
        same_stem: those of the paths that another path differs from by its extension alone.
        problems: (number of the images before it, reason, note) of everything that is no image.
        shard_files: tars and tables in the folder.
    """

    folder: str
    paths: list[str]
    same_stem: frozenset[str]
    problems: list[tuple[int, str, str]]
    shard_files: list[str] = field(default_factory=list)

    @property
    def shards(self) -> int:
        """Number of shards."""
        return -(-len(self.paths) // IMAGES_PER_SHARD)

    def identity(self, number: int) -> str:
        """Text that differs if a shard has other images or keys."""
        return "\0".join(p + "\0\0" * (p in self.same_stem) for p in self.members(number))

    def members(self, number: int) -> list[str]:
        """Paths of a shard's images."""
        return self.paths[number * IMAGES_PER_SHARD : (number + 1) * IMAGES_PER_SHARD]

    def problems_of(self, number: int) -> Iterator[tuple[str, str]]:
        """(reason, note) of what was found among a shard's images; each problem is of one shard."""
        for before, reason, note in self.problems:
            if min(before // IMAGES_PER_SHARD, self.shards - 1) == number:
                yield reason, note

    def key(self, path: str) -> str:
        """Sample key of an image: its path without the extension.

        ``%``, dots, a leading slash and what cannot be printed are percent-encoded; where two images differ
        by their extensions alone, ``%~EXTENSION`` follows. Different paths have different keys.
        """
        base, _, extension = path.rpartition(".")
        key = encoded(base)
        return f"{key}%~{extension}" if path in self.same_stem else key

    def files(self, path: str) -> Iterator[tuple[str, str]]:
        """(lower-case extension, path on the disk) of an image and of the sidecars that it may have."""
        base, _, extension = os.path.join(self.folder, path).rpartition(".")
        yield extension.lower(), f"{base}.{extension}"
        for sidecar in SIDECARS:
            yield sidecar, f"{base}.{sidecar}"

    def stats(self, number: int) -> tuple[str, int, int]:
        """(digest of all files' sizes, times of change and rights; bytes; last time of change in ns) of a shard."""
        digest, size, changed = hashlib.sha256(), 0, 0
        for path in self.members(number):
            for _, file in self.files(path):
                try:
                    status = os.stat(file)
                except OSError:
                    digest.update(b"-")
                    continue
                digest.update(f"{status.st_size} {status.st_mtime_ns} {os.access(file, os.R_OK)};".encode())
                size, changed = size + status.st_size, max(changed, status.st_mtime_ns)
        return digest.hexdigest(), size, changed

    def content_digest(self, number: int) -> str:
        """SHA-256 of the keys and bytes of a shard's images and their sidecars."""
        digest = hashlib.sha256()
        for path in self.members(number):
            digest.update(f"{self.key(path)}\n".encode())
            for extension, file in self.files(path):
                try:
                    data = read_regular(file)
                except FileNotFoundError:
                    continue
                except OSError:
                    digest.update(f"{extension} unreadable\n".encode())
                    continue
                digest.update(f"{extension} {len(data)}\n".encode())
                digest.update(data)
        return digest.hexdigest()

    @cached_property
    def repeated_names(self) -> frozenset[str]:
        """File names that occur in several folders."""
        return frozenset(name for name, n in Counter(map(posixpath.basename, self.paths)).items() if n > 1)


@dataclass(frozen=True)
class ImageTable:
    """A Parquet table with an image column, as Hugging Face's ``datasets`` writes it.

    Attributes:
        column: with the images. groups: (first row, number of rows, first row group, end) of each shard:
            row groups in order, until a shard has IMAGES_PER_SHARD rows.
    """

    path: str
    column: str
    groups: list[tuple[int, int, int, int]]

    @property
    def shards(self) -> int:
        """Number of shards."""
        return len(self.groups)

    def identity(self, number: int) -> str:
        """Text that differs if a shard has other rows."""
        return f"{self.column} {self.groups[number][:2]}"

    def bytes_of(self, number: int) -> int:
        """Share of the file's size in proportion to a shard's rows."""
        return os.stat(self.path).st_size * self.groups[number][1] // sum(rows for _, rows, _, _ in self.groups)


Source = LooseImages | ImageTable


@dataclass(frozen=True)
class VirtualShard:
    """A parsed virtual shard: path of its source, name of its outputs, number in the source."""

    source: str
    digest: str
    name: str
    number: int

    def open(self) -> Source:
        """The source's listing, from this process's memory if it has the shard's images.

        Raises:
            InputError: the source is missing, or has other images now.
        """
        for listed_now in (False, True):
            source = _listed(self.source, again=listed_now)
            if self.number < source.shards and _digest(source, self.number) == self.digest:
                return source
        raise InputError(
            f"{self.source}: found other images than those that {self.name} was made of; want the same ones, or the "
            "command started again with the folder, list or table itself"
        )


def virtual_shard(path: str | Path) -> VirtualShard | None:
    """Parse the path of a shard; None: it is of a file."""
    found = _FORM.fullmatch(str(path)) if "/#" in str(path) else None
    return found and VirtualShard(found[1], found[2], found[3], int(found[4]))


def virtual_shards(source: str) -> list[str]:
    """Virtual shards of a folder of images, a list or an image table, listed now; [] for a folder without any.

    A folder without images has those of the image tables in and below it.

    Raises:
        InputError: a list or table without images; or a folder that has both images and other shards.
    """
    found = _listed(source, again=True)
    if isinstance(found, LooseImages) and found.shard_files:
        tables = [path for path in found.shard_files if path.endswith(TABLE)]
        if not found.paths:
            return [shard for path in tables if image_column(path) for shard in virtual_shards(path)]
        others = [path for path in found.shard_files if not path.endswith(TABLE)] or tables[:1]
        if not others[0].endswith(TABLE) or image_column(others[0]):
            raise InputError(
                f"{source}: found images (such as {found.paths[0]!r}) and shards (such as {others[0]}) in one folder; "
                "want one of both: a folder, glob or list of its own"
            )
    if not found.shards and not os.path.isdir(source):
        raise InputError(f"{source}: no image in it{_first(found)}; {WANTED}")
    name = Path(os.path.abspath(source)).name if os.path.isdir(source) else stem(source)
    name = re.sub(r"[^\w-]+", "-", name).strip("-") or "images"
    base = source.rstrip("/") or "/."
    return [f"{base}/#{_digest(found, n)}/{name}-{n:05d}" for n in range(found.shards)]


def relist(sources: Iterable[str]) -> None:
    """List sources again, as files may have come or gone since this process did."""
    for source in sources:
        _listed(source, again=True)


def virtual_bytes(shard: VirtualShard) -> int | None:
    """Size of a virtual shard's images and sidecars; None if its source has other images now."""
    try:
        source = shard.open()
        return source.bytes_of(shard.number) if isinstance(source, ImageTable) else source.stats(shard.number)[1]
    except (InputError, OSError):
        return None


def read_regular(path: str) -> bytes:
    """Content of a regular file.

    Raises:
        OSError: it cannot be read, or is another kind of file: a pipe, which would block, or a device.
    """
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "not a regular file")
        return file.read()


def encoded(path: str) -> str:
    """``path`` with ``%``, dots, a leading slash and what cannot be printed percent-encoded, for a key."""
    encoded = "".join(c if c.isprintable() and c not in "%." else _percent(c) for c in path)
    return f"%2F{encoded[1:]}" if encoded.startswith("/") else encoded


def _percent(character: str) -> str:
    return "".join(f"%{byte:02X}" for byte in character.encode(errors="surrogateescape"))


def image_column(table: str | Path) -> str | None:
    """Name of the image column of a Parquet file: a struct with ``bytes``; None: it has none, or is no such file.

    Raises:
        InputError: it has several, and none is called ``image``.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        schema = pq.read_schema(table)
    except (OSError, pa.ArrowInvalid):
        return None
    names = [f.name for f in schema if pa.types.is_struct(f.type) and f.type.get_field_index("bytes") >= 0]
    if len(names) > 1 and "image" not in names:
        raise InputError(f"{table}: found image columns {', '.join(names)}; want one, or one that is called `image`")
    return "image" if "image" in names else next(iter(names), None)


_LISTINGS: dict[str, Source] = {}
_LOCK = threading.Lock()


def _listed(path: str, *, again: bool) -> Source:
    with _LOCK:
        source = None if again else _LISTINGS.get(path)
        if source is None:
            _LISTINGS.pop(path, None)
            source = _LISTINGS[path] = _list(path)
            while len(_LISTINGS) > _CACHED:
                del _LISTINGS[next(iter(_LISTINGS))]
        return source


def _list(path: str) -> Source:
    if os.path.isdir(path):
        return _walk(path.rstrip("/") or "/")
    if not os.path.exists(path):
        raise InputError(f"{path}: no such file")
    return _read_table(path) if path.endswith(TABLE) else _read_list(path)


def _digest(source: Source, number: int) -> str:
    return hashlib.sha256(source.identity(number).encode(errors="surrogateescape")).hexdigest()[:12]


def _first(found: Source) -> str:
    """Words on the first thing that is no image."""
    return f" ({found.problems[0][2]})" if isinstance(found, LooseImages) and found.problems else ""


def _walk(root: str) -> LooseImages:
    """List a folder's images at any depth. Links to folders are followed; no folder is listed twice."""
    images: list[str] = []
    problems: list[tuple[str, str, str]] = []
    shard_files: list[str] = []
    seen: set[tuple[int, int]] = set()
    waiting = [""]
    while waiting:
        folder = waiting.pop()
        try:
            status = os.stat(os.path.join(root, folder))
            with os.scandir(os.path.join(root, folder)) as listing:
                entries = sorted(listing, key=lambda entry: entry.name)
        except OSError as error:
            problems.append((folder, "unreadable_folder", f"{folder or '.'!r}: {error.strerror}"))
            continue
        if (status.st_dev, status.st_ino) in seen:
            problems.append((folder, "folder_listed_before", f"{folder!r}: a link to a folder that is read already"))
            continue
        seen.add((status.st_dev, status.st_ino))
        folders, others, bases = [], [], set()
        for entry in entries:
            path = f"{folder}/{entry.name}" if folder else entry.name
            if is_hidden(entry.name):
                problems.append((path, "hidden_file", f"{path!r}: hidden files are no data"))
            elif _is(entry.is_dir):
                folders.append(path)
            elif not _is(entry.is_file):
                reason = "broken_link" if entry.is_symlink() else "not_a_file"
                problems.append((path, reason, f"{path!r}: want a file's content, or a link to a file"))
            elif is_image_name(path):
                images.append(path)
                bases.add(path.rpartition(".")[0])
            else:
                others.append(path)
        for path in others:
            base, _, extension = path.rpartition(".")
            if path.endswith((".tar", *COMPRESSED_TARS, TABLE)):
                shard_files.append(os.path.join(root, path))
            if base not in bases or extension not in SIDECARS:
                problems.append((path, "not_an_image", f"{path!r}: want *.{', *.'.join(IMAGE_EXTENSIONS)}"))
        waiting += reversed(folders)
    images.sort()
    problems.sort()
    before = [(bisect(images, path), reason, note) for path, reason, note in problems]
    return LooseImages(root, images, _same_stem(images), before, sorted(shard_files))


def _is(check: Callable[[], bool]) -> bool:
    """Result of ``check``; False for a link that leads to itself."""
    try:
        return check()
    except OSError:
        return False


def _same_stem(paths: list[str]) -> frozenset[str]:
    seen, several = set[str](), set[str]()
    for path in paths:
        base = path.rpartition(".")[0]
        (several if base in seen else seen).add(base)
    return frozenset(path for path in paths if path.rpartition(".")[0] in several) if several else frozenset()


def _read_list(path: str) -> LooseImages:
    """Read a list: a path a line, relative to the list's folder."""
    images: dict[str, None] = {}
    problems: list[tuple[int, str, str]] = []
    for number, line in enumerate(Path(path).read_bytes().decode("utf-8-sig", "surrogateescape").split("\n"), 1):
        if not (line := line.removesuffix("\r")):
            continue
        image = posixpath.normpath(line)
        if is_url(line):
            raise InputError(f"{path}: line {number}: found a URL; want paths of files (img2dataset downloads URLs)")
        if not is_image_name(image):
            problems.append((len(images), "not_an_image", f"line {number}: want *.{', *.'.join(IMAGE_EXTENSIONS)}"))
        elif image in images:
            problems.append((len(images), "listed_twice", f"line {number}: {image!r}"))
        else:
            images[image] = None
    paths = list(images)
    return LooseImages(os.path.dirname(path), paths, _same_stem(paths), problems)


def _read_table(path: str) -> ImageTable:
    import pyarrow.parquet as pq

    if (column := image_column(path)) is None:
        raise InputError(f"{path}: found no Parquet table with an image column; {WANTED}")
    about = pq.read_metadata(path)
    groups: list[tuple[int, int, int, int]] = []
    first = rows = begin = 0
    for number in range(about.num_row_groups):
        rows += about.row_group(number).num_rows
        if rows >= IMAGES_PER_SHARD or (rows and number + 1 == about.num_row_groups):
            groups.append((first, rows, begin, number + 1))
            first, rows, begin = first + rows, 0, number + 1
    return ImageTable(path, column, groups)
