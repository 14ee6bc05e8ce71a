"""Where does a packed data set lie? In a folder, or in a store that has an address: s3://BUCKET/PREFIX, gs://…, http(s)://….

An address says where, and never who asks or how: keys, endpoints and regions come from the environment, so that no recipe
and no log can hold them.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from vidssl.errors import DataError

__all__ = ["SCHEMES", "Address", "address_of", "place_of"]

SCHEMES = ("s3", "gs", "http", "https")
_FORM = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/+(.*)", re.DOTALL)  # one slash: what pathlib makes of s3://…
_HOST = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(:\d{1,5})?")
_SECRETS = {"s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY", "gs": "GOOGLE_APPLICATION_CREDENTIALS"}


@dataclass(frozen=True)
class Address:
    """A place in a store.

    Attributes:
        scheme: One of `SCHEMES`.
        host: Bucket, or host and port.
        path: What follows, without slashes at its ends; may be empty.
    """

    scheme: str
    host: str
    path: str

    def __str__(self) -> str:
        return f"{self.scheme}://{self.host}" + (f"/{self.path}" if self.path else "")

    def __truediv__(self, name: str) -> Address:
        """The place called `name` below this one."""
        return Address(self.scheme, self.host, f"{self.path}/{name}" if self.path else name)

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path.rpartition("/")[2]

    @property
    def parent(self) -> Address:
        """Without the last part of the path."""
        return Address(self.scheme, self.host, self.path.rpartition("/")[0])

    @property
    def written(self) -> bool:
        """Whether such stores can be written."""
        return not self.scheme.startswith("http")


def address_of(word: str | Path | Address) -> Address | None:
    """The address that a word is; None: it names a folder or a file.

    Raises:
        DataError: an address of another kind of store, one that names nothing, or one that holds a key or a password.
    """
    if isinstance(word, Address):
        return word
    found = _FORM.fullmatch(str(word))
    if found is None or os.path.exists(word):
        return None
    scheme, rest = found[1].lower(), found[2]
    if scheme not in SCHEMES:
        raise DataError(
            f"{word} is the address of an unknown kind of store; give a folder, or an address that begins with "
            "s3://, gs://, http:// or https://"
        )
    if "@" in rest or "?" in rest or "#" in rest:  # not repeated: it may hold a secret
        where = _SECRETS.get(scheme)
        way = f"keys come from the environment ({where})" if where else "give the plain address of the folder"
        raise DataError(f"this {scheme}:// address holds an '@', '?' or '#', where keys and passwords stand; {way}")
    host, _, path = rest.partition("/")
    parts = [part for part in path.split("/") if part]
    if not _HOST.fullmatch(host) or not all(part.isprintable() and part not in (".", "..") for part in parts):
        raise DataError(f"{word} names no place in a store; type e.g. s3://BUCKET/PACKED, or https://HOST/PACKED")
    return Address(scheme, host, "/".join(parts))


def place_of(word: str | Path | Address) -> Path | Address:
    """The absolute folder, or the address, that a word is.

    Raises:
        DataError: as `address_of`.
    """
    address = address_of(word)
    return Path(str(word)).expanduser().resolve() if address is None else address
