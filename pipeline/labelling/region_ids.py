"""Identity of regions and phrases outside the store: in the files of labelling tools, and on their way back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from pipeline.data.records import Box, GroundingRecord, Region, Span
from pipeline.data.verdicts import CODES_PER_PIXEL
from pipeline.io.hashing import digest_json
from pipeline.phrases.cleaning import plain_text

PhraseKey = str | tuple[Span, ...]
"""A class name, or a phrase's spans in the caption."""


def phrase_key(record: GroundingRecord, region: Region) -> PhraseKey:
    """Phrase of a record's region; of a grounding record's region without spans its text."""
    return region.phrase if record.kind == "detection" or not region.tokens_positive else region.tokens_positive


def region_id(phrase: PhraseKey, box: Box) -> str:
    """Id of a region, unique in its image and the same for the same phrase and box (xyxy in pixels of a record)."""
    spans = phrase if isinstance(phrase, str) else [list(span) for span in phrase]
    return digest_json([spans, [round(value * CODES_PER_PIXEL) for value in box]])[:10]


def phrase_texts(record: GroundingRecord) -> dict[PhraseKey, str]:
    """Phrases of a record's regions, and its uncertain ones, with a text for each that no other has in the image.

    Where a caption says the same phrase twice, the texts are "dog [2:5]", "dog [17:20]", with the span.
    """
    texts: dict[PhraseKey, str] = {phrase_key(record, region): region.phrase for region in record.regions}
    for span in record.uncertain:
        texts.setdefault((span,), plain_text((record.caption or "")[slice(*span)]))
    count = Counter(map(folded, texts.values()))
    return {
        phrase: text if isinstance(phrase, str) or (text and count[folded(text)] == 1) else spanned(text, phrase)
        for phrase, text in texts.items()
    }


def folded(text: str) -> str:
    """Text by which phrases are compared: white space and case do not count."""
    return " ".join(text.split()).casefold()


def spanned(text: str, spans: Sequence[Span]) -> str:
    """Text of a phrase with its place in the caption."""
    return f"{text} [{spans[0][0]}:{spans[-1][1]}]"


def shard_and_key(file: str) -> tuple[str, str]:
    """Shard and key of an image from its path in an export, FOLDER/SHARD/KEY.EXTENSION."""
    _, shard, name = file.split("/", 2)
    return shard, name.rpartition(".")[0]
