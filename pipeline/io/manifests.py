"""``data_manifests/*.yaml``: which sets there are, where their files lie, in which format and under which licence."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline.errors import InputError


class SetManifest(BaseModel):
    """One set of a manifest. Paths are relative to the root that the manifest is read with."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["detection", "grounding", "evaluation", "crawl", "gold"]
    format: Literal["coco", "mdetr", "img2dataset", "parquet"]
    path: str | None = None
    annotations: str | None = Field(None, description="the JSON file of a labelled set")
    images_folder: str | None = Field(None, description="folder that the file names in it are relative to")
    prompts: str | None = Field(None, description="what an evaluation set is asked")
    shards_pattern: str | None = Field(None, description="a crawl's shards")
    tables_pattern: str | None = Field(None, description="gold tables")
    licence: str | None = None
    source: str | None = Field(None, description="the page that offers the set")
    nouns: str | None = None
    counts: dict[str, int] = Field(default_factory=dict)
    sha256: str | None = None

    @property
    def labelled(self) -> bool:
        """Whether ingest makes training shards of it."""
        return self.kind in {"detection", "grounding", "evaluation"}


def read_manifest(path: str | Path) -> dict[str, SetManifest]:
    """The sets of a manifest, by name.

    Raises:
        InputError: no such file, not YAML, no ``sets``, or a set with a wrong or unknown field; each named.
    """
    path = Path(path)
    try:
        data: Any = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except yaml.YAMLError as error:
        raise InputError(f"{path}: not YAML: {error}") from None
    sets = data.get("sets") if isinstance(data, dict) else None
    if not isinstance(sets, dict) or not sets:
        raise InputError(f"{path}: want a mapping `sets` of names to sets")
    found, wrong = {}, []
    for name, values in sets.items():
        try:
            found[str(name)] = SetManifest.model_validate(values)
        except ValidationError as error:
            wrong += [f"{path}: sets.{name}.{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
    if wrong:
        raise InputError("\n".join(wrong))
    return found
