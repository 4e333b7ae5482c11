"""Class names of each image, from a file with a column of keys and one of names."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

from pipeline.data.caption_files import FORMATS, CaptionFile, open_names
from pipeline.data.name_list import NameList, checked_names, folded, read_names, split_names
from pipeline.errors import InputError

FOOTER = "image_names"
"""Entry of a store's footer: JSON of key -> numbers of the names that the teacher was prompted with for the image."""


@dataclass(frozen=True)
class ImageNames:
    """A file of class names of images. ``names``: all of them, in the order in which they first appear."""

    file: CaptionFile
    names: NameList

    def find(self, called: Iterable[str]) -> dict[str, tuple[int, ...]]:
        """Numbers, among ``names``, of the names of those images in the file that are ``called`` so; each once."""
        found = self.file.texts(called)
        return {
            key: tuple(dict.fromkeys(self._numbers[folded(n)] for n in _names(self.file, texts)))
            for key, texts in found.items()
        }

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {folded(name): number for number, name in enumerate(self.names.names)}


def names_for(spec: str) -> NameList | ImageNames:
    """Class names for every image (:func:`pipeline.data.name_list.read_names`), or a file of those of each image.

    The file is .parquet, .csv or .jsonl, with a column ``key`` and one of ``names``: lists of names, or names joined
    by ". ". Names that differ only in case, "_" and white space are one, as it is written first.

    Raises:
        InputError: as read_names; of a file: no such one, no such columns, or no name in it.
    """
    path = spec.strip()
    if not path.lower().endswith(FORMATS):
        return read_names(spec)
    file = open_names(path)
    names: dict[str, str] = {}
    for name in _names(file, file.distinct()):
        names.setdefault(folded(name), name)
    return ImageNames(file, checked_names(path, {"names": tuple(names.values())}))


def footer_image_names(
    notes: Mapping[str, str], names: NameList | None, where: str
) -> dict[str, tuple[str, ...]] | None:
    """Key of an image -> the class names that the teacher was prompted with for it; None: all, for every image.

    Raises:
        InputError: the store's footer has others.
    """
    if names is None or FOOTER not in notes:
        return None
    try:
        numbers: dict[str, list[int]] = json.loads(notes[FOOTER])
        return {key: tuple(names.names[n] for n in of_image) for key, of_image in numbers.items()}
    except (ValueError, TypeError, AttributeError, IndexError) as error:
        raise InputError(
            f"{where}: found {FOOTER} in its footer that cannot be read ({type(error).__name__}); want what "
            "pseudo-label wrote"
        ) from None


def _names(file: CaptionFile, texts: Iterable[str | None]) -> Iterable[str]:
    """The names in values of the column: each a name, of lists, or names joined by ". "."""
    for text in texts:
        if text is not None:
            yield from [" ".join(text.split())] * bool(text.strip()) if file.lists else split_names(file.path, text)
