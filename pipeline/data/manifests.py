"""``data_manifests/*.yaml``: which sets there are, where their files lie, in which format and under which licence."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline.errors import InputError, did_you_mean
from pipeline.io.strict_yaml import read_yaml

FOLDER_VARIABLE = "GLIP_SELF_TRAIN_MANIFESTS"
"""A folder of one's own manifests, looked at first."""
OURS = Path(__file__).resolve().parents[2] / "data_manifests"
"""Beside the packages, in a checkout as where they are installed."""
LABELLED_KINDS = ("detection", "grounding", "evaluation")

FormatName = Literal[
    "coco", "lvis", "mdetr", "refcoco", "openimages", "visual_genome_objects", "visual_genome_regions", "voc", "flickr30k",
    "odvg_detection", "odvg_grounding", "grit", "glip_captions", "img2dataset", "parquet",
]  # fmt: skip


Topic = Literal["page", "licence", "files", "checksums", "layout", "counts", "copies"]
"""What of a manifest can be compared with what its owners say: addresses of pages; terms; names and addresses of files; their sizes
and sums; where they lie and how they are read; numbers of images and boxes; a mixture's multiplicities."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ExpectedFile(_Strict):
    """A file as its owners publish it; size and checksum only where they, or a library that fetches it, publish them."""

    name: str
    url: str | None = None
    path: str | None = Field(
        None, description="where it lies, if not under its name in the root or beside the set's files"
    )
    bytes: int | None = Field(None, ge=0)
    md5: str | None = Field(None, pattern="^[0-9a-f]{32}$")
    sha256: str | None = Field(None, pattern="^[0-9a-f]{64}$")
    checksum_source: str | None = Field(None, description="where size and checksum are published")


class SetManifest(_Strict):
    """One set of a manifest. Paths are relative to the root that the manifest is read with, absolute, or URLs."""

    kind: Literal["detection", "grounding", "evaluation", "crawl", "gold"]
    format: FormatName
    path: str | None = None
    split: str | None = Field(None, description="train, val or test, as its owners call it")
    annotations: str | None = Field(None, description="the label file of a labelled set, or the folder of them")
    companions: dict[str, str] = Field(default_factory=dict, description="further label files, by role (see `reads`)")
    options: dict[str, Any] = Field(default_factory=dict, description="the format's own options")
    images_folder: str | list[str] | dict[str, str] | None = Field(
        None, description="folder that the file names are relative to; several to look in; or by the name rows give"
    )
    orientation: Literal["upright", "stored"] = Field(
        "upright",
        description="what boxes of an image with an EXIF orientation are drawn on, where the stated size does not tell",
    )
    prompts: str | None = Field(None, description="what an evaluation set is asked")
    shards_pattern: str | None = Field(None, description="a crawl's shards")
    tables_pattern: str | None = Field(None, description="gold tables")
    licence: str | None = None
    source: str | None = Field(None, description="the page that offers the set")
    nouns: str | None = None
    counts: dict[str, int] = Field(default_factory=dict)
    counts_source: str | None = Field(None, description="the paper or page that the counts are from")
    files: list[ExpectedFile] = Field(default_factory=list, description="what to fetch")
    checked: dict[Topic, str] = Field(default_factory=dict, description="what of this set was compared, and with what")
    unchecked: dict[Topic, str] = Field(default_factory=dict, description="what was not, and why")
    note: str | None = None
    sha256: str | None = None

    @property
    def labelled(self) -> bool:
        """Whether ingest makes training shards of it."""
        return self.kind in LABELLED_KINDS


class Share(_Strict):
    """A set in a mixture: so many copies of it go into an epoch. ``images``: how many one copy has, in thousands or exactly."""

    manifest: str
    set: str
    copies: int = Field(1, ge=1)
    images: int | None = Field(None, ge=1)
    note: str | None = None


class Manifest(BaseModel):
    """A file of ``data_manifests``: sets, or a mixture of other files' sets. Further fields are the owner's own."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    path: Path
    name: str
    title: str | None = None
    source: str | None = None
    licence: str | None = None
    note: str | None = None
    checked: dict[Topic, str] = Field(default_factory=dict, description="of all sets, unless one says otherwise")
    unchecked: dict[Topic, str] = Field(default_factory=dict)
    sets: dict[str, SetManifest] = Field(default_factory=dict)
    mixture: list[Share] = Field(default_factory=list)


def _meant(error: Any) -> str:
    """Of a field that does not exist, which one may have been meant."""
    if error["type"] != "extra_forbidden":
        return ""
    return did_you_mean(str(error["loc"][-1]), SetManifest.model_fields)


def find_manifest(name: str | Path) -> Path:
    """The file of a manifest, from its path or its name.

    A name is looked for in the folder that GLIP_SELF_TRAIN_MANIFESTS names, in ``./data_manifests``, and among ours.

    Raises:
        InputError: no such file, or no manifest of that name.
    """
    text = str(name)
    if text.endswith((".yaml", ".yml")) or "/" in text:
        return Path(name)
    for folder in _folders():
        if (folder / f"{text}.yaml").is_file():
            return folder / f"{text}.yaml"
    raise InputError(f"{text}: no manifest of that name; there are {', '.join(manifest_names())}, or give a YAML file")


def _folders() -> list[Path]:
    own = os.environ.get(FOLDER_VARIABLE)
    return [*([Path(own)] if own else []), Path("data_manifests"), OURS]


def manifest_names() -> list[str]:
    """Names of all manifests that :func:`find_manifest` finds."""
    return sorted({path.stem for folder in _folders() for path in folder.glob("*.yaml")})


def is_name(manifest: str | Path) -> bool:
    """Whether a manifest is given by its name, and not as a file."""
    return not (str(manifest).endswith((".yaml", ".yml")) or "/" in str(manifest))


def load_manifest(name: str | Path) -> Manifest:
    """A manifest by path or name.

    Raises:
        InputError: no such file, not YAML, neither sets nor mixture, or a wrong or unknown field of a set; each named.
    """
    path = find_manifest(name)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not YAML: {error}") from None
    data: Any = read_yaml(text, str(path))
    sets = data.get("sets") if isinstance(data, dict) else None
    mixture = data.get("mixture") if isinstance(data, dict) else None
    if not (isinstance(sets, dict) and sets) and not (isinstance(mixture, list) and mixture):
        raise InputError(f"{path}: want a mapping `sets` of names to sets, or a list `mixture`")
    try:
        found = Manifest.model_validate({"name": path.stem, **data, "path": path, "sets": sets or {}})
    except ValidationError as error:
        lines = [f"{path}: {'.'.join(map(str, e['loc']))}: {e['msg']}{_meant(e)}" for e in error.errors()]
        raise InputError("\n".join(lines)) from None
    for name in found.sets:
        if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
            raise InputError(f"{path}: sets.{name}: want a name of letters, digits, - and _: shards are called by it")
    return found


def read_manifest(path: str | Path) -> dict[str, SetManifest]:
    """The sets of a manifest, by name; of a mixture the sets that it mixes.

    Raises:
        InputError: as :func:`load_manifest`, or a mixture names a set that is not there.
    """
    manifest = load_manifest(path)
    sets = dict(manifest.sets)
    for share in manifest.mixture:
        others = load_manifest(share.manifest).sets
        if share.set not in others:
            raise InputError(f"{manifest.path}: no set {share.set!r} in {share.manifest}; it has {', '.join(others)}")
        if sets.setdefault(share.set, others[share.set]) != others[share.set]:
            raise InputError(
                f"{manifest.path}: two sets {share.set!r}, one of them in {share.manifest}; their shards would have the same names: rename one"
            )
    return sets
