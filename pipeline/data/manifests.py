"""Readers of ``data_manifests/*.yaml``: data sets with files and licences, and mixtures of sets."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from pipeline.data.records import ClassPrompt
from pipeline.errors import InputError, did_you_mean
from pipeline.io.strict_model import StrictModel, problem_lines
from pipeline.io.strict_yaml import read_yaml
from pipeline.system.plugins import Registry

FOLDER_VARIABLE = "GLIP_SELF_TRAIN_MANIFESTS"
"""Environment variable: a folder of the user's manifests, searched first."""
BUILTIN_FOLDER = Path(__file__).resolve().parents[2] / "data_manifests"
"""Manifests of this project, beside the packages both in a checkout and in an installation."""
LABELLED_KINDS = ("detection", "grounding", "evaluation")

FORMATS: Registry[object] = Registry("readers", dict.fromkeys((
    "coco", "lvis", "mdetr", "refcoco", "openimages", "visual_genome_objects", "visual_genome_regions", "voc",
    "flickr30k", "odvg_detection", "odvg_grounding", "grit", "glip_captions", "yolo", "hf_parquet", "img2dataset",
    "parquet",
), ""))  # fmt: skip
"""Names of formats; those of readers are mapped to them in pipeline/readers/registry.py."""


def _known_format(name: str) -> str:
    if name not in FORMATS:
        raise ValueError(f"found {name!r}; want one of {', '.join(FORMATS.names())}")
    return name


Topic = Literal["page", "licence", "files", "checksums", "layout", "counts", "copies", "prompts"]
"""Parts of a manifest that can be verified against its publisher's statements: URLs of pages;
licence terms; names and URLs of files; sizes and checksums; folder layout and format; numbers of
images and boxes; copies in a mixture; class prompts.
"""


class ExpectedFile(StrictModel):
    """A published file; size and checksum only if its owner or a library states them."""

    name: str
    url: str | None = None
    path: str | None = Field(None, description="location, if not under its name in the root or beside the set's files")
    bytes: int | None = Field(None, ge=0)
    md5: str | None = Field(None, pattern="^[0-9a-f]{32}$")
    sha256: str | None = Field(None, pattern="^[0-9a-f]{64}$")
    checksum_source: str | None = Field(None, description="publication of the size and checksum")


class SetManifest(StrictModel):
    """One data set of a manifest. Paths are absolute, URLs, or relative to the root."""

    kind: Literal["detection", "grounding", "evaluation", "crawl", "gold"]
    format: Annotated[str, AfterValidator(_known_format)]
    path: str | None = None
    split: str | None = Field(None, description="train, val or test, as its publisher calls it")
    annotations: str | None = Field(None, description="annotation file of a labelled set, or folder of such files")
    companions: dict[str, str] = Field(default_factory=dict, description="further annotation files, by role")
    options: dict[str, Any] = Field(default_factory=dict, description="options of the format")
    images_folder: str | list[str] | dict[str, str] | None = Field(
        None, description="image folder; a list of folders to search; or folders by the name used in annotations"
    )
    orientation: Literal["upright", "stored"] = Field(
        "upright",
        description="image that boxes refer to if it has an EXIF orientation and its stated size does not decide: "
        "upright, with the orientation applied; or as stored",
    )
    names: dict[str, str] = Field(
        default_factory=dict,
        description="class name of a detection set's files -> name in its records; classes of one name are merged",
    )
    prompts: str | None = Field(None, description="prompts of an evaluation set")
    class_prompts: dict[str, ClassPrompt] = Field(
        default_factory=dict,
        description="class name -> prompt_name, prefix and suffix with which evaluation prompts",
    )
    shards_pattern: str | None = Field(None, description="shards of a crawl")
    tables_pattern: str | None = Field(None, description="gold tables")
    licence: str | None = None
    source: str | None = Field(None, description="URL of the set's page")
    nouns: str | None = None
    counts: dict[str, int] = Field(default_factory=dict)
    counts_source: str | None = Field(None, description="paper or page that states the counts")
    files: list[ExpectedFile] = Field(default_factory=list, description="files to download")
    checked: dict[Topic, str] = Field(default_factory=dict, description="parts verified, and their source")
    unchecked: dict[Topic, str] = Field(default_factory=dict, description="parts not verified, and the reason")
    note: str | None = None
    sha256: str | None = None

    @property
    def labelled(self) -> bool:
        """Whether ingest converts this set to training shards."""
        return self.kind in LABELLED_KINDS


class MixtureEntry(StrictModel):
    """A set of a mixture, and its copies in an epoch. ``images``: number in one copy."""

    manifest: str
    set: str
    copies: int = Field(1, ge=1)
    images: int | None = Field(None, ge=1)
    note: str | None = None


class Manifest(BaseModel):
    """Manifest: data sets, or a mixture of other manifests' sets. Unknown fields are ignored."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    path: Path
    name: str
    title: str | None = None
    source: str | None = None
    licence: str | None = None
    note: str | None = None
    checked: dict[Topic, str] = Field(default_factory=dict, description="default of the sets' `checked`")
    unchecked: dict[Topic, str] = Field(default_factory=dict)
    sets: dict[str, SetManifest] = Field(default_factory=dict)
    mixture: list[MixtureEntry] = Field(default_factory=list)


def find_manifest(name: str | Path) -> Path:
    """Path of a manifest given by path or name.

    Names are searched in the folder $GLIP_SELF_TRAIN_MANIFESTS, in ``./data_manifests`` and among
    this project's.

    Raises:
        InputError: no manifest of that name.
    """
    if not is_name(name):
        return Path(name)
    for folder in _folders():
        if (folder / f"{name}.yaml").is_file():
            return folder / f"{name}.yaml"
    raise InputError(f"{name}: no manifest of that name; there are {', '.join(manifest_names())}, or give a YAML file")


def _folders() -> list[Path]:
    own = os.environ.get(FOLDER_VARIABLE)
    return [*([Path(own)] if own else []), Path("data_manifests"), BUILTIN_FOLDER]


def manifest_names() -> list[str]:
    """Names of all manifests known to :func:`find_manifest`."""
    return sorted({path.stem for folder in _folders() for path in folder.glob("*.yaml")})


def is_name(manifest: str | Path) -> bool:
    """Whether a manifest is given by name rather than by path."""
    return not (str(manifest).endswith((".yaml", ".yml")) or "/" in str(manifest))


def load_manifest(name: str | Path) -> Manifest:
    """Load a manifest by path or name.

    Raises:
        InputError: no such file, not YAML, neither sets nor mixture, or an invalid or unknown field
            of a set.
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
        manifest = Manifest.model_validate({"name": path.stem, **data, "path": path, "sets": sets or {}})
    except ValidationError as error:
        lines = problem_lines(error, str(path), lambda loc: did_you_mean(str(loc[-1]), SetManifest.model_fields))
        raise InputError("\n".join(lines)) from None
    for name in manifest.sets:
        if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
            raise InputError(f"{path}: sets.{name}: want a name of letters, digits, - and _, as shards are named by it")
    return manifest


def read_manifest(path: str | Path, only: str | None = None) -> dict[str, SetManifest]:
    """Sets of a manifest by name, including the sets of its mixture; or the set ``only``.

    Raises:
        InputError: as :func:`load_manifest`, or ``only`` or a set that a mixture refers to is missing.
    """
    manifest = load_manifest(path)
    sets = dict(manifest.sets)
    for share in manifest.mixture:
        others = load_manifest(share.manifest).sets
        if share.set not in others:
            raise InputError(f"{manifest.path}: no set {share.set!r} in {share.manifest}; it has {', '.join(others)}")
        if sets.setdefault(share.set, others[share.set]) != others[share.set]:
            raise InputError(
                f"{manifest.path}: two sets {share.set!r}, one of them in {share.manifest}; rename one, as their "
                "shards would have the same names"
            )
    if only is None:
        return sets
    if only not in sets:
        raise InputError(f"{path}: no set {only!r}; it has {', '.join(sets)}")
    return {only: sets[only]}
