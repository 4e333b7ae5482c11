"""Sets of images to hash: crawl shards, training shards, or a folder of image files."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.data.crawl import DOT_IN_KEY, IMAGE, described, dotted_keys, image_of
from pipeline.data.image_links import LinkReader
from pipeline.data.images import IMAGE_EXTENSIONS, ImageError
from pipeline.data.resizing import stated_original
from pipeline.errors import InputError
from pipeline.io.files import file_size, listing_below, open_file, read_range
from pipeline.io.hashing import digest_file, digest_json
from pipeline.io.paths import is_hidden, is_url, join, stem
from pipeline.io.samples import find_sample, read_samples
from pipeline.io.shard_patterns import expand_crawl, shards_in
from pipeline.io.tars import TarProblems, TarSample

FILES_PER_PART = 2000
"""Number of image files whose hashes form one table."""
_FILES = tuple(f".{e}" for e in (*IMAGE_EXTENSIONS, "tif", "tiff"))
_NAMED = re.compile(r"(\w[\w.-]*)=(.+)")


@dataclass(frozen=True)
class SetImage:
    """An image, or the problem in reading it. offset, size: its byte range in the shard; None for a
    file of its own. original: (height, width) before a crawler resized it, if stated.
    """

    key: str
    data: bytes | None = None
    problem: ImageError | None = None
    offset: int | None = None
    size: int | None = None
    original: tuple[int, int] | None = None


@dataclass(frozen=True)
class ImageSet:
    """Images to hash, divided into parts.

    shards: part -> tar or virtual shard. files: part -> image files relative to ``folder``.
    """

    name: str
    shards: Mapping[str, str] = field(default_factory=dict)
    folder: str = ""
    files: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @property
    def parts(self) -> list[str]:
        """Names of the parts, sorted."""
        return sorted([*self.shards, *self.files])

    def path(self, part: str) -> str:
        """Path of a part's tar, or of the folder of image files."""
        return self.shards.get(part, self.folder)

    def digest(self, part: str) -> str:
        """Digest of a part; of image files only names and sizes, as there may be a million."""
        if part in self.shards:
            return digest_file(self.shards[part])
        return digest_json({name: file_size(join(self.folder, name)) for name in self.files[part]})

    def fetch(self, part: str, key: str, offset: int | None, size: int | None) -> bytes:
        """Read one image. Without ``offset`` and ``size`` (a compressed shard) the shard is read up
        to it.

        Raises:
            InputError, OSError: the image is missing.
        """
        if part in self.files:
            with open_file(join(self.folder, key)) as file:
                return file.read()
        shard = self.shards[part]
        if offset is None or size is None:
            sample = find_sample(shard, key)
            image = None if sample is None else _of_sample(shard, sample, LinkReader())
            if image is None or image.data is None:
                raise InputError(f"{shard}: has no image {key} any more")
            return image.data
        data = read_range(shard, offset, size)
        return LinkReader().read(shard, data) if data.startswith(b"{") else data  # a link is JSON

    def images(self, part: str, problems: TarProblems) -> Iterator[SetImage]:
        """Images of a part, in order."""
        if part in self.shards:
            links = LinkReader()
            for sample in read_samples(self.shards[part], problems):
                dotted = dotted_keys(sample)
                for key in dotted:
                    yield SetImage(key, problem=ImageError(DOT_IN_KEY, "want keys without dots"))
                image = _of_sample(self.shards[part], sample, links)
                if image.problem is None or not dotted:
                    yield image
            return
        for name in self.files[part]:
            try:
                with open_file(join(self.folder, name)) as file:
                    yield SetImage(name, file.read())
            except OSError as error:
                yield SetImage(name, problem=ImageError("unreadable_file", f"{type(error).__name__}: {error.strerror}"))


def _of_sample(shard: str, sample: TarSample, links: LinkReader) -> SetImage:
    if (image := image_of(sample)) is not None:
        extension, data = image
        original = stated_original(sample.files.get("json"))
        return SetImage(sample.key, data, None, sample.offsets.get(extension), len(data), original)
    if "link" not in sample.files:
        return SetImage(sample.key, problem=ImageError("no_image", f"found {described(sample)}; want {IMAGE}"))
    offset, size = sample.offsets.get("link"), len(sample.files["link"])
    return SetImage(sample.key, links.read(shard, sample.files["link"]), offset=offset, size=size)


def shard_set(name: str, shards: Sequence[str]) -> ImageSet:
    """Image set of tars or virtual shards, with a part for each."""
    return ImageSet(name, shards={stem(shard): shard for shard in shards})


def read_image_set(option: str) -> ImageSet:
    """Parse ``[NAME=]SHARDS`` or ``[NAME=]FOLDER``; the folder has either tars or image files.

    The default name is that of the folder, or of the shards without their numbers.

    Raises:
        InputError: no such shards, or the folder has neither tars nor images.
    """
    named = None if Path(option).exists() else _NAMED.fullmatch(option)
    name, path = (named[1], named[2]) if named else (None, option)
    local_folder = not is_url(path) and Path(path).is_dir()
    if local_folder or (is_url(path) and not re.search(r"\.tar|[*?\[{]", path)):
        if not shards_in(path):
            return _folder(name or path.rstrip("/").rsplit("/", 1)[-1], path.rstrip("/"))
        name = name or Path(path).absolute().name
    shards = expand_crawl(path)
    return shard_set(name or re.sub(r"[-_]?\d+$", "", stem(shards[0])) or stem(shards[0]), shards)


def _folder(name: str, folder: str) -> ImageSet:
    images = sorted(n for n in listing_below(folder, "") if n.lower().endswith(_FILES) and not is_hidden(n))
    if not images:
        raise InputError(f"{folder}: neither *.tar shards nor image files ({', '.join(_FILES)}) in this folder")
    starts = range(0, len(images), FILES_PER_PART)
    files = {f"files-{i:05d}": tuple(images[s : s + FILES_PER_PART]) for i, s in enumerate(starts)}
    return ImageSet(name, folder=folder, files=files)
