"""Class names in place of captions: read from a list, a file or a known set, and joined to a prompt."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterable, Mapping
from functools import cached_property
from importlib import resources
from typing import Any

from pydantic import ValidationError, model_validator

from pipeline.data.manifests import load_manifest, manifest_names
from pipeline.data.records import Span
from pipeline.errors import InputError
from pipeline.io.files import read_bytes
from pipeline.io.paths import is_url
from pipeline.io.strict_model import StrictModel
from pipeline.io.strict_yaml import read_yaml

log = logging.getLogger("glip_self_train")

SEPARATOR = ". "
"""Separator of a prompt's names (GLIP paper, section 3.1)."""
FORMS = (
    "names joined by '. '; a file: .txt (a line a name, `name: synonym, synonym`), .json (a list, COCO's categories or "
    "a set's dataset.json), .yaml (YOLO's `names`), or .parquet, .csv or .jsonl (each image's own names); or one of "
    "the words coco, voc, lvis, objects365"
)
_LISTS = (".txt", ".names")
_FILES = (*_LISTS, ".json", ".yaml", ".yml")
_WORDS = ("v3det", "openimages")
"""Sets whose names are not in this project; those of manifests have their word too."""
_NEWEST = {"lvis": "lvis-v1", "objects365": "objects365-v2"}
_MARKS = re.compile(r"[.,:]")
_LETTER = re.compile(r"[^\W\d_]")


class NameList(StrictModel):
    """Class names in the user's order, and for each the synonyms that are prompted beside it.

    ``synonyms`` has an item for each name. All texts differ in more than case, "_" and white space.
    """

    names: tuple[str, ...]
    synonyms: tuple[tuple[str, ...], ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _an_item_for_each_name(cls, data: Any) -> Any:
        if not isinstance(data, Mapping) or data.get("synonyms"):
            return data
        return {**data, "synonyms": tuple(() for _ in data.get("names") or ())}

    @model_validator(mode="after")
    def _texts_are_distinct(self) -> NameList:
        if not self.names:
            raise ValueError("found no name; want one or more")
        if len(self.synonyms) != len(self.names):
            raise ValueError(f"found synonyms of {len(self.synonyms)} names; want those of {len(self.names)}")
        seen: dict[str, str] = {}
        for text, index in self._texts():
            name = self.names[index]
            said = repr(text) if text == name else f"{text!r} (a synonym of {name!r})"
            other = seen.setdefault(folded(text), said)
            if other is not said:
                raise ValueError(f"found {other} and {said}; want each text once")
        return self

    def _texts(self) -> Iterable[tuple[str, int]]:
        for index, (name, synonyms) in enumerate(zip(self.names, self.synonyms, strict=True)):
            yield name, index
            yield from ((synonym, index) for synonym in synonyms)

    @cached_property
    def phrases(self) -> list[tuple[str, int]]:
        """(prompted text, index of its class): each name's own text, then its synonyms, in order."""
        from model.grounding import clean_name  # imports torch, which a stage without a teacher does not need

        return [(" ".join(clean_name(text).split()), index) for text, index in self._texts()]

    @property
    def prompt(self) -> str:
        """The texts of all ``phrases``, joined by ". "."""
        return SEPARATOR.join(text for text, _ in self.phrases)

    @cached_property
    def spans(self) -> list[Span]:
        """[start, end) of each of ``phrases`` in ``prompt``, in characters."""
        from model.grounding import prompt_from_names

        return [spans[0] for spans in prompt_from_names([text for text, _ in self.phrases], SEPARATOR)[1]]


def folded(text: str) -> str:
    """A text as it is compared with others: without case, "_" and repeated white space."""
    return " ".join(text.replace("_", " ").split()).casefold()


def split_names(where: str, text: str) -> list[str]:
    """Names that are joined by ". ".

    Raises:
        InputError: a name with ".", "," or ":" in it.
    """
    names = [part.strip() for part in re.split(r"\.(?:\s+|$)", text) if part.strip()]
    _refuse_marks(where, names)
    return names


def footer_names(notes: Mapping[str, str], where: str) -> NameList | None:
    """The names in a store's footer, its JSON under ``names``; None for a store of captions.

    Raises:
        InputError: they are no NameList.
    """
    return None if "names" not in notes else _made(where, _json(notes["names"], where))


def read_names(spec: str) -> NameList:
    """Read class names, and their synonyms, in one of these forms.

    - ``person. fork lift``: names joined by ". "; one name alone needs none.
    - a ``.txt`` file: a line a name, or ``name: synonym, synonym``; "#" begins a comment.
    - a ``.json`` file: a list of names, COCO's categories (in the order of their ids), a set's
      ``dataset.json``, or a NameList.
    - a ``.yaml`` file: ``names`` of YOLO's data.yaml.
    - ``coco`` or ``voc``: the names that torchvision has; ``lvis`` (v1), ``objects365`` (v2) or
      ``objects365-v1``: those in the folder names.

    Files may be at URLs. Names with ".", "," or ":" in them want a .json or .yaml file. Classes
    whose texts differ only in parentheses ("bow (weapon)") stay apart, with a warning, as the
    teacher cannot distinguish them.

    Raises:
        InputError: no such file, another format, no name, a text twice, a synonym that is a
            class, a name without a letter, or a set whose names are not in this project.
    """
    text = spec.strip()
    one = re.search(r"\.\s", text) is None
    if is_url(text) or (text.lower().endswith(_FILES) and one):
        return checked_names(text, _of_file(text))
    if os.path.isfile(text) or ("/" in text and one):
        found = "a file of another kind" if os.path.isfile(text) else "no such file"
        raise InputError(f"names: {text}: found {found}; want {FORMS}")
    return checked_names("names", _of_word(text) or {"names": split_names("names", text)})


def _made(where: str, data: Any) -> NameList:
    try:
        return NameList.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        words = str(first["ctx"]["error"]) if first["type"] == "value_error" else f"found {first['input']!r}; want text"
        raise InputError(f"{where}: {words}") from None


def checked_names(where: str, data: Any) -> NameList:
    """The NameList of fields ``data``, whose texts a teacher can be prompted with.

    Raises:
        InputError: it is none, or a text is without a letter or one of two classes.
    """
    names = _made(where, data)
    classes: dict[str, list[int]] = {}
    for (text, index), (given, _) in zip(names.phrases, names._texts(), strict=True):
        if not _LETTER.search(text):
            raise InputError(f"{where}: found the name {given!r}; want one with a letter outside parentheses")
        others = classes.setdefault(text.casefold(), [])
        if others and (given != names.names[index] or others[0] == index or text in names.synonyms[others[0]]):
            other = names.names[others[0]]
            raise InputError(
                f"{where}: found {given!r} of {names.names[index]!r} and of {other!r}; want a synonym that is no other "
                "class"
            )
        others.append(index)
    shared = {text: [names.names[i] for i in indices] for text, indices in classes.items() if len(indices) > 1}
    for text, same in shared.items():
        log.warning("%s: %s are all prompted as %r, so the teacher cannot distinguish them", where, same, text)
    return names


def _refuse_marks(where: str, texts: Iterable[str]) -> None:
    for text in texts:
        if mark := _MARKS.search(text):
            raise InputError(
                f"{where}: found {mark[0]!r} in the name {text!r}; want names joined by '. ', a file with a line a "
                f"name, or a .json list, whose names may have {mark[0]!r} in them"
            )


def _of_file(path: str) -> dict[str, Any]:
    try:
        data = read_bytes(path)
        text = None if data is None else data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: found no UTF-8 text ({error.reason} at byte {error.start}); want {FORMS}") from None
    except OSError as error:
        raise InputError(f"{path}: found no readable file ({error.strerror}); want {FORMS}") from None
    if text is None:
        raise InputError(f"{path}: no such file; want {FORMS}")
    if path.lower().endswith(_LISTS):
        return _of_lines(path, text)
    found = _json(text, path) if path.lower().endswith(".json") else read_yaml(text, path)
    if isinstance(found, dict) and "categories" in found:
        return {"names": _of_categories(path, found["categories"])}
    if isinstance(found, dict) and "label_space" in found:
        found = found["label_space"]
    elif isinstance(found, dict) and "names" in found:
        if "synonyms" in found:
            return {name: found[name] for name in ("names", "synonyms")}
        found = found["names"]
        if isinstance(found, dict) and all(str(number).isdecimal() for number in found):  # YOLO's number -> name
            found = [name for _, name in sorted(found.items(), key=lambda item: int(item[0]))]
    if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
        raise InputError(f"{path}: found no list of names; want {FORMS}")
    return {"names": [" ".join(name.split()) for name in found]}


def _of_categories(path: str, categories: Any) -> list[str]:
    try:
        return [str(category["name"]) for category in sorted(categories, key=lambda category: int(category["id"]))]
    except (TypeError, KeyError, ValueError) as error:
        raise InputError(
            f"{path}: found categories that are not COCO's ({type(error).__name__}: {error}); want objects with id "
            "and name"
        ) from None


def _of_lines(path: str, text: str) -> dict[str, Any]:
    names, synonyms = [], []
    for number, line in enumerate(text.splitlines(), 1):
        name, colon, rest = line.partition("#")[0].partition(":")
        if not name.strip() and not colon:
            continue
        others = [part.strip() for part in rest.split(",")] if colon else []
        if not name.strip() or (colon and not all(others)):
            raise InputError(f"{path}: line {number}: found {line.strip()!r}; want `name` or `name: synonym, synonym`")
        own = [" ".join(part.split()).rstrip(" .") for part in (name, *others)]
        _refuse_marks(f"{path}: line {number}", own)
        names.append(own[0])
        synonyms.append(own[1:])
    return {"names": names, "synonyms": synonyms}


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: found no JSON ({error}); want {FORMS}") from None


def _of_word(word: str) -> dict[str, Any] | None:
    """Fields of the NameList of the set that a word names; None if it names none.

    Raises:
        InputError: the project knows the set, but not its names.
    """
    word = word.lower()
    if word == "coco":
        from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights

        names = FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
        return {"names": [name for name in names if name[:2] not in ("__", "N/")]}
    if word == "voc":
        from torchvision.models.segmentation import FCN_ResNet50_Weights

        names = FCN_ResNet50_Weights.COCO_WITH_VOC_LABELS_V1.meta["categories"]
        return {"names": [name for name in names if name[:2] != "__"]}
    file = resources.files("pipeline.data").joinpath("names", f"{_NEWEST.get(word, word)}.txt")
    if "/" not in word and file.is_file():
        return _of_lines(word, file.read_text(encoding="utf-8"))
    manifests = [m for m in manifest_names() if m == word or re.sub(r"-v\d+$", "", m) == word]
    if word not in _WORDS and not manifests:
        return None
    sets = {name: own for m in manifests for name, own in load_manifest(m).sets.items() if own.labelled}
    files = [own.annotations for own in sets.values() if own.annotations and own.annotations.endswith(".json")][:1]
    files += [f"the {name}.dataset.json that ingest wrote" for name in sets][:1]
    raise InputError(
        f"names: found the set {word!r}, whose class names are not in this project; want a file that has them: "
        + (" or ".join(files) or "a .json list, or annotations with COCO's categories")
    )
