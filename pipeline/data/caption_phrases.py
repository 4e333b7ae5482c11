"""What is asked about each image of a shard: the caption and its phrases, as parse-phrases found them."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from pipeline.data.records import PHRASES, Span
from pipeline.io.tables import read_table


@dataclass(frozen=True)
class CaptionPhrases:
    """What is asked about one image: its caption, and for each phrase its row in the phrases file, span and root."""

    caption: str
    rows: tuple[int, ...]
    spans: tuple[Span, ...]
    roots: tuple[str, ...]

    @property
    def phrases(self) -> list[str]:
        """The phrases' texts."""
        return [self.caption[start:end] for start, end in self.spans]


def read_caption_phrases(path: str | Path) -> dict[str, CaptionPhrases]:
    """key -> what is asked about it, from a phrases file, in the shard's order.

    Raises:
        InputError: no such file, or not one that parse-phrases wrote.
    """
    table = read_table(path, PHRASES, ["key", "caption", "start", "end", "root"])
    columns = (table[name].to_pylist() for name in table.column_names)
    found = {}
    for key, group in groupby(enumerate(zip(*columns, strict=True)), key=lambda row: row[1][0]):
        places, rows = zip(*group, strict=True)
        _, captions, starts, ends, roots = zip(*rows, strict=True)
        found[key] = CaptionPhrases(captions[0], places, tuple(zip(starts, ends, strict=True)), roots)
    return found
