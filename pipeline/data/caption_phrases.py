"""Caption and phrases of each image of a shard, as written by parse-phrases."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from pipeline.data.name_list import NameList
from pipeline.data.records import Span
from pipeline.io.tables import read_table


@dataclass(frozen=True)
class CaptionPhrases:
    """One image's caption, and each phrase's row number in the phrases file, span and root.

    numbers: as in records.NUMBERED_PHRASES; None if the file has none. names: the class of each phrase, of
    class names; None for a caption's phrases.
    """

    caption: str
    rows: tuple[int, ...]
    spans: tuple[Span, ...]
    roots: tuple[str, ...]
    numbers: tuple[int | None, ...] | None = None
    names: tuple[str, ...] | None = None

    @classmethod
    def of_names(cls, names: NameList) -> CaptionPhrases:
        """Texts of class names, their prompt in place of a caption."""
        classes = tuple(names.names[index] for _, index in names.phrases)
        return cls(names.prompt, tuple(range(len(classes))), tuple(names.spans), classes, names=classes)

    def of_some(self, numbers: Sequence[int]) -> CaptionPhrases:
        """Some of the texts of class names, with their rows and spans among all; no name has synonyms."""
        names = tuple(self.roots[n] for n in numbers)
        return CaptionPhrases(self.caption, tuple(numbers), tuple(self.spans[n] for n in numbers), names, names=names)

    @property
    def phrases(self) -> list[str]:
        """Texts of the phrases."""
        return [self.caption[start:end] for start, end in self.spans]


def read_caption_phrases(path: str | Path) -> dict[str, CaptionPhrases]:
    """Read a phrases file: sample key -> caption and phrases, in the shard's order.

    Raises:
        InputError: no such file, or not written by parse-phrases.
    """
    table = read_table(path, ["key", "caption", "start", "end", "root"], optional=["number"])
    values = (table[name].to_pylist() for name in table.column_names)
    images = {}
    for key, group in groupby(enumerate(zip(*values, strict=True)), key=lambda row: row[1][0]):
        rows, fields = zip(*group, strict=True)
        _, captions, starts, ends, roots, *numbers = zip(*fields, strict=True)
        images[key] = CaptionPhrases(captions[0], rows, tuple(zip(starts, ends, strict=True)), roots, *numbers)
    return images
