"""The same few operations on local files and on objects behind a URL; network trouble is waited out.

Credentials come from the environment, where each store's own tools look for them (AWS_ACCESS_KEY_ID and AWS_ENDPOINT_URL,
GOOGLE_APPLICATION_CREDENTIALS), never from settings, so they cannot get into an output, a log or a fingerprint.
"""

from __future__ import annotations

import io
import logging
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, TypeVar

from pipeline.errors import InputError
from pipeline.io.paths import is_url

log = logging.getLogger("glip_self_train")

PATIENCE = float(os.environ.get("GLIP_SELF_TRAIN_PATIENCE", "180"))
"""Seconds for which a store that does not answer is asked again, before the shard counts as failed."""
BLOCK = 16 << 20

T = TypeVar("T")
_USED: dict[int, Any] = {}
"""File systems that live as long as the process. A fork makes its own and would else throw away its parent's: a client's clean-up closes
connections, which are the parent's still, and fails in the fork's event loop."""
_PERMANENT = (
    FileNotFoundError, FileExistsError, PermissionError, IsADirectoryError, NotADirectoryError,
    ValueError, TypeError, AttributeError, NotImplementedError, ImportError,
)  # fmt: skip
_REFUSALS = {401, 403, 404, 405, 410, 416}
"""Answers of a web server that will be the same when it is asked again."""
_PERMANENT_NAMES = {"NoCredentialsError", "PartialCredentialsError", "ParamValidationError"}


def _passing(error: BaseException) -> bool:
    """Whether the same request may succeed later."""
    cause = error.__cause__
    if isinstance(error, FileNotFoundError) and type(cause).__module__.startswith(("aiohttp", "asyncio")):
        status = getattr(cause, "status", None)  # fsspec calls every failure over HTTP a missing file
        return status is None or status >= 500 or status == 429
    if _status(error) in _REFUSALS:
        return False
    return isinstance(error, Exception) and not (
        isinstance(error, _PERMANENT) or type(error).__name__ in _PERMANENT_NAMES
    )


_BEYOND_END = 416
"""The object ends before the range that was asked for begins."""


def _status(error: BaseException) -> int | None:
    """What a web server answered, as aiohttp, gcsfs and, of what s3fs made another error of, botocore tell it."""
    response = getattr(error.__cause__, "response", None)
    told = [getattr(error, name, None) for name in ("status", "code")]
    if isinstance(response, dict):
        told.append(response.get("ResponseMetadata", {}).get("HTTPStatusCode"))
    return next((int(number) for number in map(str, told) if number.isdecimal()), None)


def patiently(what: str, action: Callable[[], T]) -> T:
    """The result of ``action``, tried again while the store fails in ways that pass, for PATIENCE seconds at most."""
    from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_random_exponential

    def tell(state: Any) -> None:
        log.warning("%s: %s; trying again", what, _first_line(state.outcome.exception()))

    return Retrying(
        retry=retry_if_exception(_passing),
        stop=stop_after_delay(PATIENCE),
        wait=wait_random_exponential(multiplier=0.5, max=10),
        before_sleep=tell,
        reraise=True,
    )(action)


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]


@contextmanager
def named_errors(url: str) -> Iterator[None]:
    """A store's refusals as InputErrors that name the object and say what would help."""
    try:
        yield
    except FileNotFoundError as error:
        if _passing(error):
            raise InputError(f"{url}: no answer ({_first_line(error.__cause__ or error)})") from None
        raise InputError(f"{url}: no such object") from None
    except PermissionError as error:
        raise InputError(f"{url}: access refused ({_first_line(error)}); are the store's credentials set?") from None
    except ImportError as error:
        extra = {"s3": "s3", "gs": "gs"}.get(url.split(":", 1)[0], "https")
        raise InputError(f"{url}: {error}; pip install 'glip-self-train[{extra}]'") from None
    except Exception as error:
        if _status(error) in _REFUSALS - {_BEYOND_END}:
            raise InputError(f"{url}: refused ({_first_line(error)})") from None
        if type(error).__name__ in _PERMANENT_NAMES:
            raise InputError(f"{url}: {error}; set the store's credentials in the environment") from None
        raise


def filesystem(url: str) -> tuple[Any, str]:
    """(fsspec file system, path in it) of a URL."""
    import fsspec

    with named_errors(url):
        fs, path = fsspec.core.url_to_fs(url, **({"use_listings_cache": False} if not url.startswith("http") else {}))
    _USED[id(fs)] = fs
    return fs, path


def open_file(path: str | Path) -> IO[bytes]:
    """Open for reading, from a local path or a URL that fsspec knows (s3://, gs://, https://).

    Raises:
        FileNotFoundError: a local file is missing. InputError: an object is missing, or access is refused.
    """
    if not is_url(path):
        return open(path, "rb")
    return io.BufferedReader(_Steady(str(path)), BLOCK)


class _Steady(io.RawIOBase):
    """A remote file that is opened anew, at the byte it had come to, when a read fails in a way that passes."""

    def __init__(self, url: str) -> None:
        self._url, self._place = url, 0
        self._fs, self._path = filesystem(url)
        self._file = self._call(self._open)

    def _call(self, action: Callable[[], T]) -> T:
        with named_errors(self._url):
            return patiently(self._url, action)

    def _open(self) -> Any:
        file = self._fs.open(self._path, "rb", block_size=BLOCK, cache_type="readahead")
        if self._place:
            file.seek(self._place)
        return file

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        def read() -> bytes:
            if self._file is None:
                self._file = self._open()
            try:
                return self._file.read(len(buffer))
            except Exception:
                self._drop()
                raise

        data = self._call(read)
        buffer[: len(data)] = data
        self._place += len(data)
        return len(data)

    def _drop(self) -> None:
        if self._file is not None:
            with suppress(Exception):
                self._file.close()
        self._file = None

    def close(self) -> None:
        self._drop()
        super().close()


def read_bytes(path: str | Path) -> bytes | None:
    """The whole content, or None if there is no such file."""
    if is_url(path):
        fs, inner = filesystem(str(path))
        try:
            with named_errors(str(path)):
                return patiently(str(path), lambda: _or_none(lambda: fs.cat_file(inner)))
        except IsADirectoryError:
            return None
    try:
        return Path(path).read_bytes()
    except FileNotFoundError:
        return None


def read_range(path: str | Path, offset: int, size: int) -> bytes:
    """``size`` bytes from ``offset`` on; fewer if the file ends before."""
    if is_url(path):
        fs, inner = filesystem(str(path))
        try:
            with named_errors(str(path)):
                return patiently(str(path), lambda: fs.cat_file(inner, start=offset, end=offset + size))
        except Exception as error:
            if _status(error) == _BEYOND_END:
                return b""
            raise
    with open(path, "rb") as file:
        file.seek(offset)
        return file.read(size)


def read_small(path: str | Path) -> bytes:
    """The whole of a local file of a size that one read gives, without the objects that ``open`` makes around it.

    Raises:
        OSError: as ``open``; IsADirectoryError for a folder.
    """
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0))
    try:
        size = os.fstat(handle).st_size
        data = os.read(handle, size + 1)
        if len(data) == size:
            return data
        parts = [data]  # it is larger than a read gives, or grows, or is no plain file
        while part := os.read(handle, BLOCK):
            parts.append(part)
        return b"".join(parts)
    finally:
        os.close(handle)


def require_files(paths: Iterable[str | Path]) -> None:
    """See that local files are there before work begins; objects behind URLs are taken at their word.

    Raises:
        InputError: names the first that is missing.
    """
    for path in paths:
        if not is_url(path) and not Path(path).is_file():
            raise InputError(f"{path}: no such file")


def file_size(path: str | Path) -> int | None:
    """Bytes of a file, or None if there is none, or a folder of that name."""
    if is_url(path):
        fs, inner = filesystem(str(path))
        with named_errors(str(path)):
            info = patiently(str(path), lambda: _or_none(lambda: fs.info(inner)))
        return None if info is None or info.get("type") == "directory" else int(info["size"])
    try:
        found = Path(path).stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return None if stat.S_ISDIR(found.st_mode) else found.st_size


def _or_none(action: Callable[[], T]) -> T | None:
    try:
        return action()
    except FileNotFoundError as error:
        if _passing(error):
            raise
        return None


def write_remote(url: str, local: str | Path) -> None:
    """Send a finished local file; the object appears whole (in one request, or as completed parts) or not at all."""
    fs, inner = filesystem(url)
    with named_errors(url):
        patiently(url, lambda: fs.put_file(str(local), inner))


def remove(path: str | Path) -> None:
    """Remove a file if it is there."""
    if is_url(path):
        fs, inner = filesystem(str(path))
        with named_errors(str(path)):
            patiently(str(path), lambda: _or_none(lambda: fs.rm_file(inner)))
    else:
        Path(path).unlink(missing_ok=True)


def listing_below(folder: str | Path, suffix: str) -> list[str]:
    """Names of the files below a folder, at any depth, that end in ``suffix``: relative to it, "/" between, sorted."""
    if is_url(folder):
        fs, inner = filesystem(str(folder))
        with named_errors(str(folder)):
            found = patiently(str(folder), lambda: _or_none(lambda: fs.find(inner.rstrip("/")))) or []
        start = len(fs._strip_protocol(inner).rstrip("/")) + 1
        return sorted(name[start:] for name in found if name.endswith(suffix))
    return sorted(p.relative_to(folder).as_posix() for p in Path(folder).rglob(f"*{suffix}") if p.is_file())


def listing(folder: str | Path, suffix: str) -> list[str]:
    """Full names of a folder's files that end in ``suffix``, hidden ones too, sorted; empty if there is no folder."""
    if is_url(folder):
        fs, inner = filesystem(str(folder))
        with named_errors(str(folder)):
            found = patiently(str(folder), lambda: _or_none(lambda: fs.ls(inner.rstrip("/"), detail=False))) or []
        return sorted(fs.unstrip_protocol(name) for name in found if name.endswith(suffix))
    if not Path(folder).is_dir():
        return []
    return sorted(str(p) for p in Path(folder).iterdir() if p.name.endswith(suffix))
