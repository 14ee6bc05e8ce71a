"""A foreign file, opened so that it can say nothing but what lies in it, by PyAV 18 and 19 alike.

FFmpeg reads through a Python file, never by name, and may open nothing else: a playlist (.m3u8, ffconcat, DASH …) would
otherwise pull in files from outside the source, or from the network.
"""

from __future__ import annotations

import errno
import io
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, BinaryIO, NoReturn, cast

import av
from av.container import InputContainer
from av.error import FFmpegError

from pipelines.packing.part import WHOLE, Part

__all__ = ["PAUSES_S", "Rejected", "cannot_be_reached", "opened"]

_NOTHING_ELSE = {"protocol_whitelist": "none"}
"""For demuxers that open by themselves what they are pointed at (concat); the others ask `_refuse`."""

_POINTERS = (b"ffconcat", b"#EXTM3U")
_UNREACHABLE = {
    errno.EIO,
    errno.ESTALE,
    errno.ETIMEDOUT,
    errno.EHOSTDOWN,
    errno.EHOSTUNREACH,
    errno.ENETDOWN,
    errno.ENETUNREACH,
    errno.ENOTCONN,
    errno.ECONNRESET,
    errno.EREMOTEIO,
    errno.EMFILE,
    errno.ENFILE,
}
PAUSES_S = (0.5, 1.0, 2.0, 4.0)
"""Before a store that does not answer is asked again."""

_READ_AT_ONCE = 1 << 16

_open: Any = av.open
_LENIENT: dict[str, str] = {"metadata_errors": "replace"} if int(av.__version__.partition(".")[0]) < 19 else {}
"""Titles that are not UTF-8 must not stop a video: asked for up to PyAV 18, always so since 19."""


class Rejected(Exception):
    """The video is not packed; the text is the reason."""


@contextmanager
def opened(path: str, part: Part = WHOLE) -> Iterator[InputContainer]:
    """The demuxed file.

    Args:
        path: A regular file.
        part: Which of its bytes are the video.

    Raises:
        Rejected: it is no regular file, is empty, or points at other files.
        OSError, FFmpegError, ValueError: it cannot be read, or is no video.
    """
    _refuse_what_is_no_file(path, part)
    with open(path, "rb", buffering=0) as whole:
        stream = whole if part.size is None else _Stretch(whole, part.offset, part.size)
        try:
            container = _open(
                stream,
                "r",
                container_options=_NOTHING_ELSE,
                io_open=_refuse,
                buffer_size=_READ_AT_ONCE,
                **_LENIENT,
            )
        except FFmpegError as error:
            if _points_elsewhere(stream):
                raise _elsewhere("other files") from error
            raise
        with cast(InputContainer, container):
            yield container


def cannot_be_reached(error: Exception) -> bool:
    """Whether the store or the machine is to blame, not the file: reading it again may succeed."""
    return isinstance(error, OSError) and not isinstance(error, FFmpegError) and error.errno in _UNREACHABLE


class _Stretch(io.RawIOBase):
    """Some bytes of an open file, as a file of their own."""

    def __init__(self, whole: io.FileIO, first: int, size: int) -> None:
        self._whole, self._first, self._size, self._place = whole, first, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        wanted = max(0, min(len(buffer), self._size - self._place))
        self._whole.seek(self._first + self._place)
        data = self._whole.read(wanted)
        buffer[: len(data)] = data
        self._place += len(data)
        return len(data)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self._size}[whence]
        self._place = max(0, base + offset)
        return self._place

    def tell(self) -> int:
        return self._place


def _refuse_what_is_no_file(path: str, part: Part) -> None:
    found = os.stat(path)
    if not stat.S_ISREG(found.st_mode):
        raise Rejected("it is no regular file")
    if found.st_size == 0 or part.size == 0:
        raise Rejected("the file is empty")
    if part.size is not None and found.st_size < part.offset + part.size:
        raise Rejected("the tar ends within it")


def _refuse(url: str, flags: int, options: Mapping[str, str]) -> NoReturn:
    """PyAV asks here before any further file is opened."""
    del flags, options
    raise _elsewhere(f"'{os.path.basename(str(url))}'")


def _points_elsewhere(stream: BinaryIO | Any) -> bool:
    stream.seek(0)
    return stream.read(4096).lstrip().startswith(_POINTERS)


def _elsewhere(what: str) -> Rejected:
    return Rejected(f"it is a playlist that points at {what}; give the videos themselves")
