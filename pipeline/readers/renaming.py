"""Renaming of a detection set's classes (`names` of a manifest)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.errors import InputError, did_you_mean
from pipeline.readers.base import Header, LabelledImage, Losses


@dataclass(frozen=True)
class ClassRenaming:
    """Renaming of a detection set's classes; several may get one name.

    names: name -> new name. sources: new name -> all names that become it.
    """

    names: Mapping[str, str]
    sources: Mapping[str, frozenset[str]]

    @classmethod
    def of(cls, names: Mapping[str, str], space: Iterable[str], where: str) -> ClassRenaming:
        """The renaming of a manifest, for a set of classes ``space``.

        Raises:
            InputError: a name is no class of the set, or a new name is empty.
        """
        space = set(space)
        for name, new in names.items():
            if name not in space:
                raise InputError(f"{where}: names: found {name!r}{did_you_mean(name, sorted(space))}; want a class")
            if not new.strip():
                raise InputError(f"{where}: names: found no new name of {name!r}; want one")
        sources = {new: frozenset(n for n in space if names.get(n, n) == new) for new in names.values()}
        return cls(names, sources)

    def header(self, header: Header) -> dict[str, Any]:
        """The set's data with the new names; of classes that are merged, the highest frequency."""
        space = list(dict.fromkeys(self.names.get(name, name) for name in header["label_space"]))
        frequency: dict[str, str] = {}
        for name, letter in (header.get("frequency") or {}).items():
            new = self.names.get(name, name)
            frequency[new] = min(letter, frequency.get(new, letter), key="fcr".index)
        return {**header, "label_space": space, "frequency": frequency or None}

    def apply(self, item: LabelledImage) -> LabelledImage:
        """An image with the new names. A class is verified as absent if all that it is made of are."""

        def new_names(names: Iterable[str]) -> set[str]:
            return {self.names.get(name, name) for name in names}

        renamed = [
            region.model_copy(update={"phrase": self.names[region.phrase]}) if region.phrase in self.names else region
            for region in item.regions
        ]
        regions, lost = tuple(dict.fromkeys(renamed)), Losses(item.lost)
        if len(regions) < len(renamed):
            lost["same_box_again"] += len(renamed) - len(regions)
        lost.examples = getattr(item.lost, "examples", {})
        boxless = new_names(item.boxless_names)
        absent, incomplete = item.verified_absent, item.not_exhaustive
        if absent is not None:
            present = {region.phrase for region in regions} | boxless
            whole = {name for name in new_names(absent) if self.sources.get(name, frozenset()) <= {*absent}}
            absent = tuple(sorted(whole - present))
        if incomplete is not None:
            incomplete = tuple(sorted(new_names(incomplete)))
        return item._replace(
            regions=regions, boxless_names=tuple(sorted(boxless)), verified_absent=absent, not_exhaustive=incomplete,
            lost=lost,
        )  # fmt: skip
