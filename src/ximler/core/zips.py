"""Zip archives, written while they are read, and read within limits.

An archive that is read lies in a file that can be sought, because only its directory, at its end, says what
the entries are. Its directory is checked as a whole before any entry is read.
"""

import asyncio
import io
import stat
import zipfile
import zlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from datetime import datetime
from typing import Any, BinaryIO

import msgspec

from ximler.core.errors import Invalid

__all__ = ["Entry", "Unzipped", "zipped"]

_DIRECTORY = 1_000_000  # bytes that an archive's directory may have: some thousand entries
_PIECE = 256_000
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_BROKEN = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, ValueError, OSError)


class Entry(msgspec.Struct, frozen=True):
    """A file of an archive that is written. `packed`: its content is compressed already."""

    name: str
    pieces: AsyncGenerator[bytes, None]
    packed: bool = False


async def zipped(entries: AsyncIterator[Entry], now: datetime) -> AsyncGenerator[bytes, None]:
    """The archive, in pieces. A truncated one does not open, because its directory comes last.

    Memory is bounded by a piece and the compressor's window. The compressor runs in a thread.
    """
    out = _Out()
    with zipfile.ZipFile(out, "w") as made:
        async for each in entries:
            entry = zipfile.ZipInfo(each.name, now.timetuple()[:6])
            entry.compress_type = zipfile.ZIP_STORED if each.packed else zipfile.ZIP_DEFLATED
            async with aclosing(each.pieces):  # closes as soon as the reader disconnects
                with made.open(entry, "w", force_zip64=True) as opened:
                    async for piece in each.pieces:
                        await asyncio.to_thread(opened.write, piece)
                        yield out.taken()
    yield out.taken()


class Unzipped:
    """An archive that somebody sent. `sizes` has the entries by name, folders left out, with their declared
    sizes: a larger entry is damaged, so these sizes bound the bytes that are read.

    Raises Invalid, with the entry's name, for entries that are links, encrypted, repeated,
    or compressed by other methods.
    """

    def __init__(self, file: BinaryIO, *, entries: int, allowed: Callable[[str], bool]) -> None:
        try:
            self._archive = zipfile.ZipFile(_Bounded(file))
        except _BROKEN as error:
            raise _invalid(f"is no zip archive that can be read: {error}") from None
        self.sizes: dict[str, int] = {}
        for each in self._archive.infolist():
            name = each.filename
            if each.is_dir():
                continue
            if stat.S_ISLNK(each.external_attr >> 16):
                raise _invalid(f"has a link, {name!r}")
            if not allowed(name):
                raise _invalid(f"has the entry {name!r}, which is no part of an exported project")
            if each.flag_bits & 1:
                raise _invalid(f"has an encrypted entry, {name!r}")
            if each.compress_type not in _METHODS:
                raise _invalid(f"has the entry {name!r}, which is compressed by another method than deflate")
            if name in self.sizes:
                raise _invalid(f"has the entry {name!r} twice")
            self.sizes[name] = each.file_size
        if len(self.sizes) > entries:
            raise _invalid(f"has more than {entries:,} entries")

    async def read(self, name: str) -> AsyncGenerator[bytes, None]:
        """The content of an entry, in pieces, inflated in a thread. Raises Invalid if it is damaged."""
        try:
            with await asyncio.to_thread(self._archive.open, name) as opened:
                while piece := await asyncio.to_thread(opened.read, _PIECE):
                    yield piece
        except _BROKEN as error:
            raise _invalid(f"has the damaged entry {name!r}: {error}") from None

    async def whole(self, name: str, *, most: int) -> bytes:
        """The content of an entry of at most so many bytes. Raises Invalid."""
        if name not in self.sizes:
            raise _invalid(f"lacks the entry {name!r}")
        if self.sizes[name] > most:
            raise _invalid(f"has the entry {name!r}, which is larger than {most:,} bytes")
        return b"".join([piece async for piece in self.read(name)])

    def close(self) -> None:
        self._archive.close()


def _invalid(problem: str) -> Invalid:
    return Invalid.field("file", problem)


class _Bounded:
    """A file for zipfile, which reads a whole directory at once, of any size that the archive declares."""

    def __init__(self, file: BinaryIO) -> None:
        self.tell, self.seek, self._file = file.tell, file.seek, file

    def seekable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        if size > _DIRECTORY:
            raise zipfile.BadZipFile("its directory is too large")
        found = self._file.read(_DIRECTORY + 1 if size < 0 else size)
        if len(found) > _DIRECTORY:
            raise zipfile.BadZipFile("its directory is too large")
        return found

    def close(self) -> None:
        """The file belongs to the caller."""


class _Out(io.RawIOBase):
    """The file that zipfile writes to: buffers bytes until they are read, and cannot seek."""

    def __init__(self) -> None:
        self._kept = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._kept += data
        return len(data)

    def taken(self) -> bytes:
        taken = bytes(self._kept)
        self._kept.clear()
        return taken
