"""Reader of ``data_manifests/demo.yaml``: nouns, colours, fonts with their glyphs, photographs."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError, model_validator

from pipeline.demo.config import DemoDataConfig
from pipeline.errors import InputError
from pipeline.io.hashing import digest_file
from pipeline.io.strict_model import StrictModel, problem_lines
from pipeline.io.strict_yaml import read_yaml

MANIFEST = Path(__file__).resolve().parents[2] / "data_manifests" / "demo.yaml"
SPLITS = ("train", "validation", "evaluation")

Split = Literal["train", "validation", "evaluation"]
RGB = tuple[int, int, int]


class FontEntry(StrictModel):
    """A font family: its file in an installed package, its licence, and its glyphs of each noun."""

    title: str
    split: Split
    package: str
    version: str
    file: str
    charmap: str
    sha256: str
    licence: str
    authors: str
    glyphs: dict[str, tuple[str, ...]]

    def path(self) -> Path:
        """Path of the font's file.

        Raises:
            InputError: the package is not installed, or has another version of the font.
        """
        path = package_file(self.package, self.file)
        if digest_file(path) != self.sha256:
            raise InputError(
                f"{self.title}: {self.file} of package {self.package} differs from the checksum in demo.yaml; "
                f"want version {self.version} of the package"
            )
        return path

    def codepoints(self) -> dict[str, tuple[str, ...]]:
        """Noun -> characters of its glyphs.

        Raises:
            InputError: a glyph's name is not in the package's charmap.
        """
        charmap: dict[str, Any] = json.loads(package_file(self.package, self.charmap).read_text())
        characters: dict[str, tuple[str, ...]] = {}
        for noun, names in self.glyphs.items():
            for name in names:
                if name not in charmap:
                    raise InputError(f"demo.yaml: {self.title}: {noun}: no glyph {name!r} in {self.charmap}")
            points = (charmap[name] for name in names)
            characters[noun] = tuple(chr(p if isinstance(p, int) else int(p, 16)) for p in points)
        return characters


class PhotoEntry(StrictModel):
    """A photograph in an installed package, and its caption."""

    package: str
    file: str
    licence: str
    authors: str
    caption: str


class DemoManifest(StrictModel):
    """Parts of the manifest used by the generator."""

    base_nouns: tuple[str, ...]
    novel_nouns: tuple[str, ...]
    colours: dict[str, RGB]
    fonts: dict[str, FontEntry]
    photos: tuple[PhotoEntry, ...]

    @model_validator(mode="after")
    def _complete(self) -> DemoManifest:
        nouns = set(self.base_nouns) | set(self.novel_nouns)
        if len(nouns) != len(self.base_nouns) + len(self.novel_nouns):
            raise ValueError("base_nouns and novel_nouns: duplicate noun")
        for name, font in self.fonts.items():
            if unknown := set(font.glyphs) - nouns:
                raise ValueError(f"fonts.{name}.glyphs: {sorted(unknown)} are not among the nouns")
            if font.split != "train" and (missing := nouns - set(font.glyphs)):
                raise ValueError(f"fonts.{name}.glyphs: a {font.split} font needs every noun; lacks {sorted(missing)}")
        return self

    def families(self, config: DemoDataConfig) -> dict[str, tuple[str, ...]]:
        """Split -> names of its font families: those of the settings, else those of the manifest.

        Raises:
            InputError: an unknown family, a family in two splits, or a noun without a glyph in a
                split.
        """
        configured = (config.train_fonts, config.validation_fonts, config.evaluation_fonts)
        chosen = {
            split: names or tuple(name for name, font in self.fonts.items() if font.split == split)
            for split, names in zip(SPLITS, configured, strict=True)
        }
        owner: dict[str, str] = {}
        for split, names in chosen.items():
            for name in names:
                if name not in self.fonts:
                    raise InputError(f"{split}_fonts: no family {name!r}; known: {', '.join(self.fonts)}")
                if owner.setdefault(name, split) != split:
                    raise InputError(f"{split}_fonts: {name} is used for {owner[name]} scenes; want another family")
            for noun in self.base_nouns + self.novel_nouns:
                if not any(noun in self.fonts[name].glyphs for name in names):
                    raise InputError(f"{split}_fonts: none of {', '.join(names)} draws {noun!r}")
        return chosen


def package_file(package: str, file: str) -> Path:
    """Path of a file in an installed package, which is not imported.

    Raises:
        InputError: the package is not installed, or has no such file.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise InputError(f"package {package} is not installed; pip install 'glip-self-train[demo]'")
    path = Path(spec.submodule_search_locations[0]) / file
    if not path.is_file():
        raise InputError(f"package {package} has no {file}; want the versions in constraints.txt")
    return path


def load_manifest(path: Path = MANIFEST) -> DemoManifest:
    """Read the manifest.

    Raises:
        InputError: the file is missing, not YAML, or a field is invalid.
    """
    try:
        data = read_yaml(path.read_text(), str(path))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; want a checkout of the project, which has it") from None
    if not isinstance(data, dict):
        raise InputError(f"{path}: want a mapping, found {type(data).__name__}")
    try:
        return DemoManifest.model_validate({k: v for k, v in data.items() if k in DemoManifest.model_fields})
    except ValidationError as error:
        raise InputError("\n".join(problem_lines(error, path.name))) from None
