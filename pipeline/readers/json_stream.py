"""Large JSON files read element by element: a label file of gigabytes costs the memory of one of its rows.

The standard library's own scanner does the work; only the walk over the top level is ours.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Collection, Iterator
from json.decoder import JSONDecodeError
from pathlib import Path
from typing import Any

from pipeline.errors import InputError
from pipeline.io.files import open_file
from pipeline.readers.sniff import refuse

CHUNK = 1 << 20
_NEAR = 64
"""An error so near to the end of what is read may be gone when more is read."""
_GOES_ON = ("", *"0123456789.eE+-")
"""What may follow is the rest of a number: of "0." the scanner takes the 0."""


class _Text:
    """The text of a UTF-8 file, as far as it is read, and a place in it."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._file = open_file(path)
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self._scan = json.JSONDecoder().raw_decode
        self.text, self.at, self.ended = "", 0, False

    def __enter__(self) -> _Text:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def more(self) -> None:
        """Read on; what lies behind is forgotten."""
        keep = self.text[self.at :]
        data = self._file.read(
            max(CHUNK, len(keep))
        )  # twice as much each time, so that a giant row is not read in vain
        self.ended = not data
        try:
            self.text, self.at = keep + self._decoder.decode(data, final=self.ended), 0
        except UnicodeDecodeError as error:
            raise InputError(f"{self.path}: want JSON in UTF-8; found other bytes ({error.reason})") from None

    def peek(self) -> str:
        """The next character that is no space; "" at the end."""
        next_one = self.text[self.at : self.at + 1]
        if next_one and next_one not in " \t\r\n":
            return next_one
        while True:
            while self.at < len(self.text):
                if self.text[self.at] not in " \t\r\n":
                    return self.text[self.at]
                self.at += 1
            if self.ended:
                return ""
            self.more()

    def take(self, wanted: str) -> str:
        """Step over one of the characters."""
        found = self.peek()
        if not found or found not in wanted:
            raise self.error(f"want one of {wanted!r}, found {found!r}" if found else "cut off")
        self.at += 1
        return found

    def value(self) -> Any:
        """The value that begins here."""
        self.peek()
        while True:
            try:
                value, end = self._scan(self.text, self.at)
            except JSONDecodeError as error:
                open_end = error.msg.startswith("Unterminated") or error.pos >= len(self.text) - _NEAR
                if self.ended or not open_end:
                    raise self.error("cut off" if open_end else error.msg) from None
            except RecursionError:
                raise self.error("nested too deeply") from None
            else:
                if self.ended or self.text[end : end + 1] not in _GOES_ON:
                    self.at = end
                    return value
            self.more()

    def error(self, why: str) -> InputError:
        """What is wrong, and near which text."""
        near = self.text[max(0, self.at - 20) : self.at + 20]
        return InputError(f"{self.path}: want JSON; found none ({why}, near {near!r})")

    def elements(self) -> Iterator[Any]:
        """The elements of the list that begins here, one by one."""
        self.take("[")
        if self.peek() == "]":
            self.take("]")
            return
        while True:
            yield self.value()
            if self.take(",]") == "]":
                return


def stream_object(path: str | Path, lists: Collection[str], wanted: str) -> Iterator[tuple[str, Any]]:
    """(name, element) of the named lists of a JSON object, in the order of the file; the rest is stepped over.

    Args:
        lists: must all be there. wanted: what the file should be, for the message.

    Raises:
        InputError: not JSON, no object, or a list is missing.
    """
    found: dict[str, str] = {}
    with _opened(path) as text:
        if text.peek() != "{":
            raise refuse(path, wanted)
        text.take("{")
        more = text.peek() != "}"
        while more:
            name = text.value()
            if not isinstance(name, str):
                raise text.error("want a name")
            text.take(":")
            begins = text.peek()
            found[name] = {"[": "list", "{": "object", '"': "text"}.get(begins, "value")
            if begins == "[":
                for element in text.elements():
                    if name in lists:
                        yield name, element
            else:
                text.value()
            more = text.take(",}") == ","
        if text.peek():
            raise text.error("more after the end")
    if any(found.get(name) != "list" for name in lists):
        kinds = ", ".join(f"`{name}` ({kind})" for name, kind in found.items()) or "nothing in it"
        raise InputError(f"{path}: want {wanted}; found an object with {kinds}")


def stream_list(path: str | Path, wanted: str) -> Iterator[Any]:
    """The elements of a JSON file that is one list.

    Raises:
        InputError: not JSON, or no list.
    """
    with _opened(path) as text:
        if text.peek() != "[":
            raise refuse(path, wanted)
        yield from text.elements()
        if text.peek():
            raise text.error("more after the end")


def stream_lines(path: str | Path, wanted: str) -> Iterator[tuple[int, Any]]:
    """(line number from 1, value) of a JSON Lines file; empty lines are stepped over.

    Raises:
        InputError: a line that is not JSON.
    """
    try:
        file = open_file(path)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    with file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                yield number, json.loads(line)
            except (ValueError, RecursionError):
                if number == 1:
                    raise refuse(path, wanted) from None
                raise InputError(f"{path}: line {number}: want {wanted}; found no JSON in it") from None


def read_object(path: str | Path, wanted: str) -> dict[str, Any]:
    """A small JSON file that is one object.

    Raises:
        InputError: not that.
    """
    with _opened(path) as text:
        value = text.value() if text.peek() == "{" else None
    if not isinstance(value, dict):
        raise refuse(path, wanted)
    return value


def _opened(path: str | Path) -> _Text:
    try:
        return _Text(str(path))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise InputError(f"{path}: want a JSON file; found a folder") from None
