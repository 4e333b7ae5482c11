"""YOLO's text files (Ultralytics, Darknet): an image has a file of lines "class cx cy w h" in shares.

The set is a data.yaml with its folders ``images/`` and ``labels/``, or such a folder with a list of
class names. Outlines and turned boxes (lines of points) become the boxes around them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import Any

from pipeline.data.images import IMAGE_EXTENSIONS
from pipeline.data.keys import image_key
from pipeline.errors import InputError
from pipeline.io.files import file_size, listing, listing_below, read_bytes
from pipeline.io.paths import is_hidden, is_url, join, parent
from pipeline.io.strict_yaml import read_yaml
from pipeline.readers.base import Format, Header, ImageLocation, LabelCollector, LabelledImage, SetFiles
from pipeline.readers.boxes import clipped
from pipeline.readers.fields import class_name, number_of, warn_of_unboxed
from pipeline.readers.index import Entry, IndexWriter
from pipeline.readers.sniff import beside, wrong_format
from pipeline.readers.xml_files import class_list, text_lines

WANTED = "YOLO's data.yaml (with `names`), or a folder with `images` and `labels` and class names in classes.txt"
MAX_YAML = 1 << 20
_HAS_NAMES = re.compile(rb"^names\s*:", re.MULTILINE)
_PIXELS = 2.0
"""Shares beyond it are pixels."""


def fill(files: SetFiles, index: IndexWriter) -> dict[str, Any]:
    """Read data.yaml and the label files. An image without one shows none of the classes, as
    Ultralytics has it.
    """
    base, names, folders = _layout(files)
    images = sorted({image for folder in folders for image in _images(folder)})
    if not images:
        raise InputError(f"{', '.join(folders)}: want images ({', '.join(IMAGE_EXTENSIONS)}); found none")
    used, without, boxed = set[str](), [], set[str]()
    for image in images:
        path = _label_file(image)
        data = read_bytes(path)
        if data is None:
            without.append(path)
        used.add(path)
        lines = [line.split() for line in (data or b"").decode(errors="replace").splitlines() if line.strip()]
        boxed.update(line[0] for line in lines)
        index.image(image.removeprefix(f"{base}/"), (image, lines))
    if len(without) == len(images):
        raise InputError(f"{without[0]}: no such file{beside(without[0])}; want the labels of {images[0]} there")
    labels = {
        p
        for folder in {parent(path) for path in used}
        for p in listing(folder, ".txt")
        if not is_hidden(p.rsplit("/", 1)[-1])
    }
    used = {str(PurePosixPath(path)) for path in used}
    lists = ("classes.txt", "train.txt", "val.txt")
    orphans = [p for p in sorted(labels) if str(PurePosixPath(p)) not in used and PurePosixPath(p).name not in lists]
    notes = []
    if without:
        notes.append(
            f"{len(without)} of {len(images)} images have no label file ({without[0]}): taken as images of none of "
            "the classes"
        )
    if orphans:
        notes.append(f"{len(orphans)} label files have no image in this split, such as {orphans[0]}")
    header: dict[str, Any] = {"names": names, "label_space": [name for name in dict.fromkeys(names.values()) if name]}
    warn_of_unboxed(files.annotations, header["label_space"], (n for i, n in names.items() if str(i) in boxed))
    return header | ({"notes": notes} if notes else {})


def _layout(files: SetFiles) -> tuple[str, dict[int, str], list[str]]:
    """(root, names by class number, image folders or lists) of a set."""
    path = files.annotations.rstrip("/")
    if file_size(path) is None:
        given = [p for p in listing(path, ".yaml") if "/." not in p and _HAS_NAMES.search(read_bytes(p) or b"")]
        if len(given) > 1 and join(path, "data.yaml") not in given:
            raise InputError(f"{path}: want one data.yaml; found {', '.join(given)}")
        path = join(path, "data.yaml") if len(given) > 1 else (given or [path])[0]
    if file_size(path) is not None:
        if "classes" in files.companions:
            raise InputError(f"{files.companions['classes']}: found it beside {path}; want class names in one of both")
        return _of_yaml(path, str(files.options.get("split", "train")))
    classes = files.companions.get("classes") or next(
        (p for p in (join(path, "classes.txt"), join(parent(path), "classes.txt")) if file_size(p) is not None), None
    )
    if classes is None or not listing_below(path, ".txt"):
        raise wrong_format(path, WANTED)
    names = class_list(classes)
    images = path
    if listing_below(join(path, "images"), ""):
        images = join(path, "images")
    elif path.rsplit("/", 1)[-1] == "labels":
        images = join(parent(path), "images")
    return parent(images), names, [images]


def _of_yaml(path: str, split: str) -> tuple[str, dict[int, str], list[str]]:
    if (file_size(path) or 0) > MAX_YAML:
        raise wrong_format(path, WANTED)
    try:
        data = read_yaml((read_bytes(path) or b"").decode("utf-8-sig"), path)
    except (UnicodeDecodeError, InputError):
        raise wrong_format(path, WANTED) from None
    given = data.get("names") if isinstance(data, dict) else None
    if isinstance(given, list):
        given = dict(enumerate(given))
    if not isinstance(given, dict) or not given or not all(str(number).isdigit() for number in given):
        raise wrong_format(path, WANTED)
    names = {int(number): class_name(str(name)) for number, name in given.items()}
    if "nc" in data and data["nc"] != len(names):
        raise InputError(f"{path}: found `nc` {data['nc']} and {len(names)} `names`; want the same number of both")
    if not data.get(split):
        there = [name for name in ("train", "val", "test") if data.get(name)]
        raise InputError(f"{path}: no split {split!r}; it has {', '.join(there) or 'none'} (options: {{split: NAME}})")
    root = parent(path)
    bases = dict.fromkeys((_below(root, str(data.get("path") or "")), root))
    entries = data[split] if isinstance(data[split], list) else [data[split]]
    return root, names, [_existing(str(entry), bases) for entry in entries]


def _below(base: str, path: str) -> str:
    if is_url(path) or path.startswith("/"):
        return path
    path = "/".join(part for part in path.split("/") if part not in ("", "."))
    return join(base, path) if path else base


def _existing(entry: str, bases: Iterable[str]) -> str:
    """The folder or list of images that data.yaml names, below one of the bases; also without the
    ``../`` that Roboflow writes.
    """
    entry = entry.replace("\\", "/").rstrip("/")
    paths = [_below(base, name) for base in bases for name in (entry, entry.removeprefix("../"))]
    for path in paths:
        if file_size(path) is not None or listing_below(path, ""):
            return path
    raise InputError(f"{paths[0]}: no such folder of images{beside(paths[0])}")


def _images(folder: str) -> list[str]:
    """Images of a folder, or of a list of them."""
    if folder.endswith(".txt"):
        base = parent(folder)
        return [_below(base, line.strip()) for line in text_lines(folder, "a list of images, one a line")]
    names = listing_below(folder, "")
    return [join(folder, n) for n in names if n.lower().endswith(_IMAGES) and not is_hidden(n)]


_IMAGES = tuple(f".{extension}" for extension in IMAGE_EXTENSIONS)


def _label_file(image: str) -> str:
    """Path of an image's labels: its last folder ``images`` is ``labels`` there."""
    before, images, after = image.rpartition("/images/")
    path = f"{before}/labels/{after}" if images else image
    return f"{path.rsplit('.', 1)[0]}.txt"


def location(image_id: Any, image: Any) -> ImageLocation:
    return ImageLocation(image[0], absolute=True)


def labelled(entry: Entry, header: Header) -> LabelledImage:
    """Convert an entry. A sixth number is a score; six or more coordinates are points."""
    _, lines = entry.image
    names, labels = header["names"], LabelCollector()
    for number, *rest in lines:
        name = names.get(int(float(number))) if number_of(number) is not None else None
        if not name:
            labels.unknown(f"class {number}", names)
            continue
        values = [number_of(value) for value in rest]
        shares = [value for value in values if value is not None]
        if len(shares) < max(4, len(values)) or max(map(abs, shares)) > _PIXELS:
            labels.lose("bad_box", f"{' '.join(rest)[:60]!r}; want cx, cy, w, h in shares of the image (0 to 1)")
            labels.add(None, name)
            continue
        score = shares[4] if len(shares) == 5 else None
        if len(shares) > 5:
            xs, ys = shares[: len(shares) // 2 * 2 : 2], shares[1::2]
            box = (min(xs), min(ys), max(xs), max(ys))
        else:
            x, y, w, h = shares[:4]
            box = (x - w / 2, y - h / 2, x + w / 2, y + h / 2)
        labels.add(clipped(box, (1, 1), labels.lost), name, score=score)
    return labels.image(entry, key=image_key(str(entry.id)), location=location, relative=True)


FORMAT = Format(
    "detection", WANTED, fill, labelled, location,
    companions={"classes": "class names, one a line, where there is no data.yaml; by default classes.txt"},
    options={"split": "split of data.yaml: train (the default), val or test"},
)  # fmt: skip
