"""What does a store hold? S3, Google Cloud Storage and plain web servers through `obstore`, and what their errors mean.

One attempt per question: who asks again, how often and with which words is `pipelines.dataset.patience`. So whatever may be
different a moment later is an OSError, and what the store has said for certain is one of `patience.ANSWERS`: there is no
such object (FileNotFoundError), or it does not let us (PermissionError, whose text says what to mend). Nothing of what a
store says is repeated word for word, for it may hold what nobody else should read.
"""

from __future__ import annotations

import errno
import importlib.util
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, BinaryIO

from pipelines.dataset.place import Address
from vidssl.errors import DataError

__all__ = ["RemoteStore"]

CONNECT_S, SILENCE_S, REQUEST_S = 5, 20, 300
"""Seconds until there must be a connection, the next byte, and the end of an answer."""
SHA256 = "sha256"
"""The name under which an object that we wrote says its checksum."""

_CREDENTIALS = {
    "s3": "give this process AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or a role), AWS_SKIP_SIGNATURE=true for a public bucket",
    "gs": "give this process GOOGLE_APPLICATION_CREDENTIALS, GOOGLE_SKIP_SIGNATURE=true for a public bucket",
}
_STATUS = re.compile(r"non-2xx status code: (\d{3})")
_UNTRUSTED = re.compile(r"UnknownIssuer|InvalidCertificate|certificate verify failed|invalid peer certificate")
_REASONS = (  # in what the library says of its inner error; the first that is found
    ("ConnectionRefused", "connection refused"),
    ("IncompleteBody", "the answer was cut off"),
    ("dns error", "its name is not known here now"),
    ("ConnectionReset", "the connection was lost"),
    ("TimedOut", "no answer in time"),
    ("kind: Timeout", "no answer in time"),
    ("kind: Interrupted", "the connection was lost"),
    ("IncompleteMessage", "the connection was lost"),
    ("BrokenPipe", "the connection was lost"),
    ("kind: Decode", "the answer was cut off"),
    ("kind: Connect", "no connection"),
)


class RemoteStore:
    """A place in a store; any thread may ask.

    Args:
        address: Where.

    Raises:
        DataError: `obstore` is not installed, or the environment says something that cannot be.
    """

    far = True

    def __init__(self, address: Address) -> None:
        self.address, self._store = address, _opened(address)

    def said(self, name: str) -> str:
        """What sentences call the object `name`."""
        return str(self.address / name)

    def read(self, name: str) -> bytes:
        """All bytes of an object.

        Raises:
            OSError: see the module.
        """
        with self._errors():
            return bytes(self._store.get(name).bytes())

    def read_range(self, name: str, begin: int, size: int) -> bytes:
        """`size` bytes from `begin` on.

        Raises:
            OSError: see the module; also where the object ends before.
        """
        with self._errors(begin + size):
            data = bytes(self._store.get_range(name, start=begin, length=size))
        if len(data) != size:
            raise OSError(f"it ends before byte {begin + size}")
        return data

    def size(self, name: str) -> int:
        """Bytes of an object that is not empty; asked by a range, so that a server without ranges is known by it.

        Raises:
            OSError: see the module.
        """
        with self._errors():
            return int(self._store.get(name, options={"range": (0, 1)}).meta["size"])

    def length(self, name: str) -> int:
        """Bytes of an object, empty ones too; nothing of it is read.

        Raises:
            OSError: see the module.
        """
        with self._errors():
            return int(self._store.head(name)["size"])

    def names(self) -> dict[str, int]:
        """Every object below this place and its bytes; web servers cannot say.

        Raises:
            OSError: see the module.
        """
        return {name: size for name, (size, _) in self.listed().items()}

    def listed(self) -> dict[str, tuple[int, int]]:
        """Every object below this place, its bytes, and when it was written last, in nanoseconds; web servers cannot say.

        Raises:
            OSError: see the module.
        """
        with self._errors():
            found = [one for part in self._store.list() for one in part]
        return {one["path"]: (int(one["size"]), round(one["last_modified"].timestamp() * 1e9)) for one in found}

    def sha256(self, name: str) -> str:
        """What an object says its checksum is; empty: nothing.

        Raises:
            OSError: see the module.
        """
        with self._errors():
            return str(self._store.get(name, options={"range": (0, 1)}).attributes.get(SHA256, ""))

    def write(self, name: str, source: Path | bytes | BinaryIO, sha256: str) -> None:
        """Make or replace an object, whole or not at all; it says its checksum.

        Raises:
            OSError: see the module.
        """
        with self._errors():
            self._store.put(name, source, attributes={SHA256: sha256})

    def create(self, name: str, data: bytes) -> bool:
        """Make a small object that is not there; False: it is there, and stays as it is.

        Of two that do so at once one is told so; by a store that knows no conditions both may be told that they made it.

        Raises:
            OSError: see the module.
        """
        import obstore.exceptions as kinds

        with self._errors():
            try:
                self._store.put(name, data, mode="create")
                return True
            except (kinds.AlreadyExistsError, kinds.PreconditionError):
                return False
            except kinds.BaseError as error:
                if not (isinstance(error, kinds.NotSupportedError) or "code: 501" in str(error)):
                    raise
        try:
            self.length(name)
            return False
        except FileNotFoundError:
            self.write(name, data, "")
            return True

    def delete(self, names: Sequence[str]) -> None:
        """Remove objects; those that are not there are fine.

        Raises:
            OSError: see the module.
        """
        with self._errors():
            self._store.delete(list(names))

    def forget(self, name: str) -> None:
        """Nothing is kept open."""

    def close(self) -> None:
        """Nothing is kept open."""

    @contextmanager
    def _errors(self, stop: int | None = None) -> Iterator[None]:
        import obstore.exceptions

        try:
            yield
        except (obstore.exceptions.BaseError, FileNotFoundError, ValueError) as error:
            raise _meaning(error, self.address, stop) from None  # what it says in full may hold a secret


def _opened(address: Address) -> Any:
    if importlib.util.find_spec("obstore") is None:
        raise DataError(f"{address} is in a store, and obstore is not installed; type pip install 'vidssl[stores]'")
    import obstore.exceptions
    from obstore import store

    plain = address.scheme == "http" or _says_yes(
        {"s3": "AWS_ALLOW_HTTP", "gs": "GOOGLE_ALLOW_HTTP"}.get(address.scheme)
    )
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
    if address.scheme == "s3" and endpoint.startswith("http://") and not plain:
        raise DataError(
            f"{address} cannot be opened: AWS_ENDPOINT_URL begins with http://, where everybody on the way can read along; "
            "if that is meant, set AWS_ALLOW_HTTP=true"
        )
    client: dict[str, Any] = {
        "connect_timeout": timedelta(seconds=CONNECT_S),
        "read_timeout": timedelta(seconds=SILENCE_S),
        "timeout": timedelta(seconds=REQUEST_S),
        "allow_http": plain,
    }
    opened: Any = store.from_url  # its overloads are by the literal form of an address
    try:
        return opened(str(address), client_options=client, retry_config={"max_retries": 0})
    except (obstore.exceptions.BaseError, ValueError, OSError) as error:
        raise DataError(
            f"{address} cannot be opened: {_setting(address, str(error))}; look at the variables of the environment"
        ) from None


def _says_yes(variable: str | None) -> bool:
    return variable is not None and os.environ.get(variable, "").lower() in ("1", "true", "yes", "on")


def _setting(address: Address, text: str) -> str:
    whose = {"s3": "AWS_", "gs": "GOOGLE_"}.get(address.scheme, "")
    return f"a {whose}… variable is wrong ({_kind_of(text)})" if whose else "it is no address of a web server"


def _kind_of(text: str) -> str:
    """The part of an error's text before its first colon, which names the kind of it and no value."""
    return text.partition(":")[0][:80]


def _meaning(error: Exception, address: Address, stop: int | None) -> OSError:
    """What an error of the library means: an answer, or something that may be different a moment later."""
    text, status = str(error), _STATUS.search(str(error))
    code = int(status[1]) if status else 0
    if "NoSuchBucket" in text or "bucket does not exist" in text:
        return _refused(f"there is no bucket '{address.host}'")
    if type(error).__name__ == "InvalidPathError":
        key = (re.search(r'[Pp]ath "([^"]{1,200})"', text) or ("", "?"))[1]
        return _refused(
            f"it holds the key '{key}', which is no path; remove it, or give a prefix that does not hold it"
        )
    if isinstance(error, FileNotFoundError) or code in (404, 410):
        return FileNotFoundError(errno.ENOENT, "there is no such object")
    if "169.254." in text or "metadata.google" in text or "TokenRequest" in text or "token request" in text:
        return _refused(f"no credentials for {address.scheme}:// were found; {_CREDENTIALS.get(address.scheme, '')}")
    if (
        code in (401, 403)
        or "ExpiredToken" in text
        or type(error).__name__ in ("PermissionDeniedError", "UnauthenticatedError")
    ):
        keys = _CREDENTIALS.get(address.scheme)
        return _refused("access is denied" + (f"; {keys}, one that may do this" if keys else ""))
    if code in (301, 302, 307, 308) or "Received redirect" in text:
        return _refused(
            "it is kept in another region; set AWS_REGION to the bucket's" if address.written else "it has moved"
        )
    if code == 416:
        return OSError(f"it ends before byte {stop}" if stop else "it is empty")
    if type(error).__name__ == "NotSupportedError" or "NotSupported" in text:
        return _refused("this server does not give parts of files (HTTP ranges), which are what is read of a shard")
    if _UNTRUSTED.search(text):
        return _refused("its certificate is not trusted here")
    if "BadScheme" in text:
        return _refused(
            "it may be reached by https:// alone; set AWS_ALLOW_HTTP=true (GOOGLE_ALLOW_HTTP) if http:// is meant"
        )
    if code:
        return OSError(f"the store answered {code}")
    return OSError(next((reason for mark, reason in _REASONS if mark in text), "no answer"))


def _refused(sentence: str) -> PermissionError:
    return PermissionError(errno.EACCES, sentence)
