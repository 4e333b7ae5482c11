"""File operations on local paths and on URLs (fsspec), with retries of transient network errors.

Credentials come from the environment variables that each store's own tools use (AWS_ACCESS_KEY_ID,
AWS_ENDPOINT_URL, GOOGLE_APPLICATION_CREDENTIALS), never from settings, so they cannot get into an
output, a log or a fingerprint.
"""

from __future__ import annotations

import errno
import io
import logging
import os
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, TypeVar

from pipeline.errors import InputError, RunError
from pipeline.io.paths import is_url
from pipeline.io.virtual_shards import virtual_bytes, virtual_shard

log = logging.getLogger("glip_self_train")

PATIENCE = float(os.environ.get("GLIP_SELF_TRAIN_PATIENCE", "180"))
"""Seconds of retries after which a request to a store counts as failed."""
BLOCK = 16 << 20
PROBE_BYTES = 1 << 16
"""Bytes written to check a folder: a full disk may have room for an empty file."""

T = TypeVar("T")
_FILE_SYSTEMS: dict[int, Any] = {}
"""All file systems, kept alive: in a forked process a client's finalizer would close connections
that the parent still uses.
"""
_PERMANENT = (
    FileNotFoundError, FileExistsError, PermissionError, IsADirectoryError, NotADirectoryError,
    ValueError, TypeError, AttributeError, NotImplementedError, ImportError,
)  # fmt: skip
_PERMANENT_STATUS = {401, 403, 404, 405, 410, 416}
"""HTTP status codes that a retry does not change."""
_RANGE_NOT_SATISFIABLE = 416
_NO_CREDENTIALS = {
    "NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError", "TokenRetrievalError",
    "UnauthorizedSSOTokenError", "SSOTokenLoadError", "ProfileNotFound", "DefaultCredentialsError", "RefreshError",
}  # fmt: skip
"""Errors of botocore and google.auth: credentials are missing, or cannot be renewed."""
_NO_ANSWER = {
    "EndpointConnectionError", "ConnectTimeoutError", "ReadTimeoutError", "ConnectionClosedError",
    "ClientConnectionError",
}  # fmt: skip
"""Errors of botocore and aiohttp. They mean, as TimeoutError and ConnectionError, after all retries that the store is
down, so every shard would wait in vain.
"""
_PERMANENT_NAMES = {*_NO_CREDENTIALS, "ParamValidationError"}
_REFUSED_CODES = {
    "400": "refused without a word; most often the credentials have expired",  # HEAD requests get no text
    "401": "", "ExpiredToken": "", "ExpiredTokenException": "", "RequestExpired": "", "InvalidToken": "",
    "TokenRefreshRequired": "", "InvalidAccessKeyId": "", "SignatureDoesNotMatch": "", "RequestTimeTooSkewed": "",
    "AuthorizationHeaderMalformed": "", "InvalidClientTokenId": "", "UnrecognizedClientException": "",
    "NotSignedUp": "", "AccountProblem": "", "AllAccessDisabled": "", "InvalidSecurity": "",
    "NoSuchBucket": "no such bucket", "QuotaExceeded": "", "InsufficientStorage": "", "507": "no space left",
    "XMinioStorageFull": "", "XMinioStorageQuotaExceeded": "", "XMinioAdminBucketQuotaExceeded": "",
}  # fmt: skip
"""Codes of a store's errors that any other object would meet too -> words for those that say nothing."""


class StoreError(InputError):
    """A store refuses a request.

    Attributes:
        url: the object.
        refused: whether access was refused; else there is no such object or bucket.
        for_all: whether it would refuse those for other objects likewise, as credentials, bucket or space are missing.
        no_answer: whether the store is down.
    """

    url, refused, for_all, no_answer = "", True, False, False


def _store_error(url: str, words: str, *, for_all: bool, refused: bool = True) -> StoreError:
    error = StoreError(f"{url}: {words}")
    # attributes, as an exception with more arguments cannot be pickled
    error.url, error.refused, error.for_all = url, refused, for_all
    error.exit_code = RunError.exit_code if for_all and refused else InputError.exit_code
    return error


def _no_answer(url: str, error: BaseException) -> StoreError:
    found = _store_error(url, f"no answer from its store ({_first_line(error)})", for_all=True)
    found.no_answer = True
    return found


def _refused_code(error: BaseException) -> str | None:
    """Code of a store's error if any other object would meet it too."""
    response = getattr(error.__cause__, "response", None)
    codes = [str(response.get("Error", {}).get("Code"))] if isinstance(response, dict) else []
    status = _status(error)
    codes += [str(status)] if status in {401, 507} else []
    return next((code for code in codes if code in _REFUSED_CODES), None)


def _is_transient(error: BaseException) -> bool:
    """Whether a retry of the same request may succeed."""
    if _refused_code(error) is not None:
        return False
    cause = error.__cause__
    if isinstance(error, FileNotFoundError) and type(cause).__module__.startswith(("aiohttp", "asyncio")):
        status = getattr(cause, "status", None)  # fsspec reports every failure over HTTP as a missing file
        return status is None or status >= 500 or status == 429
    if _status(error) in _PERMANENT_STATUS:
        return False
    return isinstance(error, Exception) and not (
        isinstance(error, _PERMANENT) or type(error).__name__ in _PERMANENT_NAMES
    )


def _status(error: BaseException) -> int | None:
    """HTTP status of an error of aiohttp, gcsfs, or (as the cause of s3fs's error) botocore."""
    response = getattr(error.__cause__, "response", None)
    codes = [getattr(error, name, None) for name in ("status", "code")]
    if isinstance(response, dict):
        codes.append(response.get("ResponseMetadata", {}).get("HTTPStatusCode"))
    return next((int(code) for code in map(str, codes) if code.isdecimal()), None)


def with_retries(what: str, action: Callable[[], T]) -> T:
    """Run ``action``; on transient errors retry with exponential backoff for PATIENCE seconds."""
    from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_random_exponential

    def warn(state: Any) -> None:
        log.warning("%s: %s; trying again", what, _first_line(state.outcome.exception()))

    return Retrying(
        retry=retry_if_exception(_is_transient),
        stop=stop_after_delay(PATIENCE),
        wait=wait_random_exponential(multiplier=0.5, max=10),
        before_sleep=warn,
        reraise=True,
    )(action)


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]


@contextmanager
def store_errors(url: str) -> Iterator[None]:
    """Convert a store's permanent errors to InputErrors that name the object and the remedy."""
    try:
        yield
    except FileNotFoundError as error:
        if _is_transient(error):
            raise _no_answer(url, error.__cause__ or error) from None
        no_bucket = _refused_code(error) == "NoSuchBucket"
        raise _store_error(
            url, "no such bucket" if no_bucket else "no such object", for_all=no_bucket, refused=False
        ) from None
    except PermissionError as error:
        words = f"access refused ({_first_line(error)}); are the store's credentials set, and still valid?"
        raise _store_error(url, words, for_all=_refused_code(error) is not None) from None
    except ImportError as error:
        extra = {"s3": "s3", "gs": "gs"}.get(url.split(":", 1)[0], "https")
        raise InputError(f"{url}: {error}; pip install 'glip-self-train[{extra}]'") from None
    except Exception as error:
        if (code := _refused_code(error)) is not None:
            line = f"{_REFUSED_CODES[code]}: {_first_line(error)}".removeprefix(": ")
            words = f"refused ({line}); are the store's credentials set, and still valid? Is there room?"
            raise _store_error(url, words, for_all=True) from None
        if _status(error) in _PERMANENT_STATUS - {_RANGE_NOT_SATISFIABLE}:
            raise _store_error(url, f"refused ({_first_line(error)})", for_all=False) from None
        if type(error).__name__ in _PERMANENT_NAMES:
            words = f"{_first_line(error)}; set the store's credentials in the environment"
            raise _store_error(url, words, for_all=type(error).__name__ in _NO_CREDENTIALS) from None
        if isinstance(error, TimeoutError | ConnectionError) or {k.__name__ for k in type(error).__mro__} & _NO_ANSWER:
            raise _no_answer(url, error) from None
        raise


def filesystem(url: str) -> tuple[Any, str]:
    """(fsspec file system, path without the protocol) of a URL."""
    import fsspec

    with store_errors(url):
        fs, path = fsspec.core.url_to_fs(url, **({"use_listings_cache": False} if not url.startswith("http") else {}))
    _FILE_SYSTEMS[id(fs)] = fs
    return fs, path


def call_store(url: str | Path, action: Callable[[Any, str], T]) -> T:
    """Result of ``action(file system, path)`` on a URL, with retries and :func:`store_errors`."""
    fs, path = filesystem(str(url))
    with store_errors(str(url)):
        return with_retries(str(url), lambda: action(fs, path))


def _call_store_or_none(url: str | Path, action: Callable[[Any, str], T]) -> T | None:
    """Result of ``action`` as :func:`call_store`, or None if there is no such object."""

    def attempt(fs: Any, path: str) -> T | None:
        try:
            return action(fs, path)
        except FileNotFoundError as error:
            if _is_transient(error):
                raise
            return None

    return call_store(url, attempt)


def open_file(path: str | Path) -> IO[bytes]:
    """Open a local path or a URL (s3://, gs://, https://) for sequential reading.

    Raises:
        FileNotFoundError: a local file is missing.
        InputError: a remote object is missing, or access is denied.
    """
    if not is_url(path):
        return open(path, "rb")
    return io.BufferedReader(_RetryingFile(str(path)), BLOCK)


class _RetryingFile(io.RawIOBase):
    """Sequential remote file that is reopened at its current position after a transient read error."""

    def __init__(self, url: str) -> None:
        self._url, self._position = url, 0
        self._fs, self._path = filesystem(url)
        self._file = self._call(self._open)

    def _call(self, action: Callable[[], T]) -> T:
        with store_errors(self._url):
            return with_retries(self._url, action)

    def _open(self) -> Any:
        file = self._fs.open(self._path, "rb", block_size=BLOCK, cache_type="readahead")
        if self._position:
            file.seek(self._position)
        return file

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        def read() -> bytes:
            if self._file is None:
                self._file = self._open()
            try:
                return bytes(self._file.read(len(buffer)))
            except Exception:
                self._drop()
                raise

        data = self._call(read)
        buffer[: len(data)] = data
        self._position += len(data)
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
    """Content of a file, or None if there is no such file."""
    if is_url(path):
        with suppress(IsADirectoryError):
            return _call_store_or_none(path, lambda fs, inner: fs.cat_file(inner))
    else:
        with suppress(FileNotFoundError):
            return Path(path).read_bytes()
    return None


def read_range(path: str | Path, offset: int, size: int) -> bytes:
    """Read ``size`` bytes from ``offset`` on; fewer if the file ends before."""
    if is_url(path):
        try:
            return bytes(call_store(path, lambda fs, inner: fs.cat_file(inner, start=offset, end=offset + size)))
        except Exception as error:
            if _status(error) == _RANGE_NOT_SATISFIABLE:
                return b""
            raise
    with open(path, "rb") as file:
        file.seek(offset)
        return file.read(size)


def read_small(path: str | Path) -> bytes:
    """Content of a small local file, by direct system calls, without the overhead of ``open``.

    Raises:
        OSError: as ``open``; IsADirectoryError for a folder.
    """
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0))
    try:
        size = os.fstat(handle).st_size
        data = os.read(handle, size + 1)
        if len(data) == size:
            return data
        parts = [data]  # larger than one read returns, growing, or not a regular file
        while part := os.read(handle, BLOCK):
            parts.append(part)
        return b"".join(parts)
    finally:
        os.close(handle)


def require_files(paths: Iterable[str | Path]) -> None:
    """Check that local files, or the sources of virtual shards, exist before work begins. URLs are not checked.

    Raises:
        InputError: a file is missing; names the first.
    """
    for path in paths:
        shard = virtual_shard(path)
        if not (is_url(path) or Path(path).is_file() or (shard is not None and Path(shard.source).exists())):
            raise InputError(f"{path}: no such file")


def check_writable(folder: str | Path) -> None:
    """Check that files can be written to a local folder, or to the one that it would be created in.

    Nothing is left there. URLs are not checked.

    Raises:
        OSError: nothing can be written; names the folder and the cause.
    """
    if is_url(folder):
        return
    there = Path(folder).absolute()
    while not there.exists() and not there.is_symlink() and there != there.parent:
        there = there.parent
    try:
        if not there.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        with tempfile.TemporaryFile(dir=there) as probe:
            probe.write(b"\0" * PROBE_BYTES)
            probe.flush()
    except OSError as error:
        error.filename = str(there if isinstance(error, NotADirectoryError) else folder)
        raise


def file_size(path: str | Path) -> int | None:
    """Size of a file, or of a virtual shard's files, in bytes; None if it does not exist or is a folder."""
    if (shard := virtual_shard(path)) is not None:
        return virtual_bytes(shard)
    if is_url(path):
        info = _call_store_or_none(path, lambda fs, inner: fs.info(inner))
        return None if info is None or info.get("type") == "directory" else int(info["size"])
    try:
        status = Path(path).stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return None if stat.S_ISDIR(status.st_mode) else status.st_size


def write_remote(url: str, local: str | Path) -> None:
    """Upload a finished local file. Stores show no object before its upload is complete."""
    call_store(url, lambda fs, inner: fs.put_file(str(local), inner))


def remove(path: str | Path) -> None:
    """Remove a file if it exists."""
    if is_url(path):
        _call_store_or_none(path, lambda fs, inner: fs.rm_file(inner))
    else:
        Path(path).unlink(missing_ok=True)


def listing_below(folder: str | Path, suffix: str) -> list[str]:
    """Files at any depth that end in ``suffix``, also links to files that are missing, which count
    where they are read: paths relative to the folder, with "/", sorted.
    """
    if is_url(folder):
        root = filesystem(str(folder))[1].rstrip("/")
        names = _call_store_or_none(folder, lambda fs, _: fs.find(root)) or []
        return sorted(name[len(root) + 1 :] for name in names if name.endswith(suffix))
    paths = (p for p in Path(folder).rglob(f"*{suffix}") if p.is_file() or not p.exists())
    return sorted(p.relative_to(folder).as_posix() for p in paths)


def listing(folder: str | Path, suffix: str) -> list[str]:
    """Full paths of a folder's files, also hidden ones, that end in ``suffix``, sorted; may be []."""
    if is_url(folder):
        names = _call_store_or_none(folder, lambda fs, inner: fs.ls(inner.rstrip("/"), detail=False)) or []
        return sorted(filesystem(str(folder))[0].unstrip_protocol(name) for name in names if name.endswith(suffix))
    if not Path(folder).is_dir():
        return []
    return sorted(str(p) for p in Path(folder).iterdir() if p.name.endswith(suffix))
