"""Readers of the ``*dataset.json`` files beside training shards, which describe a whole data set."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence

from pydantic import ValidationError

from pipeline.data.records import DatasetCard
from pipeline.errors import InputError
from pipeline.io.files import listing, read_bytes
from pipeline.io.paths import is_hidden, is_url, join, parent
from pipeline.io.strict_model import problem_lines
from pipeline.io.tables import footer, open_parquet

log = logging.getLogger("glip_self_train")


def read_cards(shards: Sequence[str]) -> Iterator[tuple[str, DatasetCard]]:
    """(folder, card) of all cards in the folders of ``shards``, local or remote.

    Folders that a store refuses to list are skipped; :func:`card_of` reads a single card there.

    Raises:
        InputError: a dataset.json is invalid.
    """
    for folder in sorted({parent(shard) for shard in shards}):
        try:
            paths = listing(folder, "dataset.json")
        except InputError as error:
            if not is_url(folder):
                raise
            log.info("%s: folder cannot be listed (%s)", folder, error)
            continue
        for path in paths:
            if not is_hidden(path.rsplit("/", 1)[-1]) and (data := read_bytes(path)) is not None:
                yield folder, _card(path, data)


def card_of(shard: str, dataset: str) -> DatasetCard | None:
    """Read the card ``DATASET.dataset.json`` beside a shard; None if there is none.

    Raises:
        InputError: the card is invalid, or access is denied.
    """
    path = join(parent(shard), f"{dataset}.dataset.json")
    data = read_bytes(path)
    return None if data is None else _card(path, data)


def labelled_by(files: Sequence[str]) -> str | None:
    """The teachers of label stores' files, with the licences of their weights; None if no licence is noted."""
    footers = [footer(open_parquet(path).schema_arrow) for path in files]
    names = {
        f"{f['teacher']} (licence of the weights: {f['teacher_licence']})" for f in footers if "teacher_licence" in f
    }
    return "; ".join(sorted(names)) or None


def _card(path: str, data: bytes) -> DatasetCard:
    try:
        return DatasetCard.model_validate_json(data)
    except ValidationError as error:
        raise InputError(problem_lines(error, path)[0]) from None
