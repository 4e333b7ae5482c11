"""Streaming of large JSON files element by element, in the memory of one element.

The standard library's decoder parses the elements; this module only walks the top level.
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
from pipeline.readers.sniff import bad_row, describe_file, wrong_format

CHUNK = 1 << 20
_NEAR_END = 64
"""An error this close to the end of the buffer may disappear when more is read."""
_CONTINUES_NUMBER = ("", *"0123456789.eE+-")
"""Next characters with which a value may be incomplete: of a buffer "0." the decoder parses 0."""


class _JsonScanner:
    """Buffered text of a UTF-8 file, and the current position in it."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._file = open_file(path)
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self._decode = json.JSONDecoder().raw_decode
        self.text, self.position, self.ended = "", 0, False

    def __enter__(self) -> _JsonScanner:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def read_more(self) -> None:
        """Discard the buffer before the position, and extend it."""
        keep = self.text[self.position :]
        data = self._file.read(max(CHUNK, len(keep)))  # doubles each time, so a huge element is not parsed too often
        self.ended = not data
        try:
            self.text, self.position = keep + self._decoder.decode(data, final=self.ended), 0
        except UnicodeDecodeError as error:
            found = describe_file(self.path)
            if "JSON" in found:
                found = f"no UTF-8 at {error.object[max(0, error.start - 20) : error.start + 5]!r}"
            raise InputError(f"{self.path}: want JSON in UTF-8; found {found}") from None

    def peek(self) -> str:
        """Skip white space and return the next character; "" at the end."""
        while True:
            while self.position < len(self.text):
                if self.text[self.position] not in " \t\r\n":
                    return self.text[self.position]
                self.position += 1
            if self.ended:
                return ""
            self.read_more()

    def take(self, expected: str) -> str:
        """Consume the next character, which must be one of ``expected``."""
        character = self.peek()
        if not character or character not in expected:
            raise self.error(f"want one of {expected!r}, found {character!r}" if character else "cut off")
        self.position += 1
        return character

    def value(self) -> Any:
        """Parse the next value."""
        self.peek()
        while True:
            try:
                value, end = self._decode(self.text, self.position)
            except JSONDecodeError as error:
                incomplete = error.msg.startswith("Unterminated") or error.pos >= len(self.text) - _NEAR_END
                if self.ended or not incomplete:
                    raise self.error("cut off" if incomplete else error.msg) from None
            except RecursionError:
                raise self.error("nested too deeply") from None
            else:
                if self.ended or self.text[end : end + 1] not in _CONTINUES_NUMBER:
                    self.position = end
                    return value
            self.read_more()

    def error(self, why: str) -> InputError:
        """Error that quotes the text around the position."""
        near = self.text[max(0, self.position - 20) : self.position + 20]
        return InputError(f"{self.path}: want JSON; found none ({why}, near {near!r})")

    def elements(self) -> Iterator[Any]:
        """Parse the next list, element by element."""
        self.take("[")
        if self.peek() == "]":
            self.take("]")
            return
        while True:
            yield self.value()
            if self.take(",]") == "]":
                return


def stream_object(path: str | Path, lists: Collection[str], wanted: str) -> Iterator[tuple[str, Any]]:
    """(name, element) of the named lists of a JSON object, in the order of the file; the rest is
    skipped.

    Args:
        lists: names of required lists.
        wanted: description of the format, for error messages.

    Raises:
        InputError: not JSON, not an object, or a list is missing.
    """
    types: dict[str, str] = {}
    with _JsonScanner(str(path)) as text:
        if text.peek() != "{":
            raise wrong_format(path, wanted)
        text.take("{")
        more = text.peek() != "}"
        while more:
            name = text.value()
            if not isinstance(name, str):
                raise text.error("want a name")
            text.take(":")
            first = text.peek()
            types[name] = {"[": "list", "{": "object", '"': "text"}.get(first, "value")
            if first == "[":
                for element in text.elements():
                    if name in lists:
                        yield name, element
            else:
                text.value()
            more = text.take(",}") == ","
        if text.peek():
            raise text.error("more after the end" + (": JSON Lines" if text.peek() == "{" else ""))
    if any(types.get(name) != "list" for name in lists):
        found = ", ".join(f"`{name}` ({kind})" for name, kind in types.items()) or "nothing in it"
        raise InputError(f"{path}: want {wanted}; found an object with {found}")


def stream_list(path: str | Path, wanted: str) -> Iterator[Any]:
    """Elements of a JSON file that is one list.

    Raises:
        InputError: not JSON, or not a list.
    """
    with _JsonScanner(str(path)) as text:
        if text.peek() != "[":
            raise wrong_format(path, wanted)
        yield from text.elements()
        if text.peek():
            raise text.error("more after the end")


def stream_lines(path: str | Path, wanted: str) -> Iterator[tuple[int, Any]]:
    """(line number from 1, value) of a JSON Lines file; empty lines are skipped. The value of a line
    that is not JSON is an InputError.
    """
    with open_file(path) as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                yield number, json.loads(line.decode("utf-8-sig"))
            except (ValueError, RecursionError):
                yield number, bad_row(path, wanted, f"line {number}: ", "no JSON in it", first=number == 1)


def read_object(path: str | Path, wanted: str) -> dict[str, Any]:
    """Read a small JSON file that is one object.

    Raises:
        InputError: not JSON, or not an object.
    """
    with _JsonScanner(str(path)) as text:
        value = text.value() if text.peek() == "{" else None
    if not isinstance(value, dict):
        raise wrong_format(path, wanted)
    return value
