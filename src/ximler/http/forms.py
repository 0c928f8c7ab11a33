"""Files in forms (RFC 7578), read as they arrive:
neither the form nor a part of it is ever whole in memory."""

from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing

from litestar.exceptions import ClientException
from multipart import MultipartError, MultipartSegment, PushMultipartParser

from ximler.core.errors import Invalid

__all__ = ["first_file"]

_OTHER_PARTS = 100  # before the file, and after it
_OTHER_BYTES = 1_000_000


async def first_file(
    pieces: AsyncGenerator[bytes, None], boundary: str
) -> tuple[str | None, AsyncGenerator[bytes, None]]:
    """The name and the content of the first part that is a file. Other parts are skipped, within limits.

    Raises ClientException for a form that cannot be read, Invalid for one without a file. Close the content.
    """
    form = _parsed(pieces, boundary)
    skipped = 0
    async for part in form:
        if isinstance(part, MultipartSegment):
            if part.filename is not None:
                return part.filename, _content(form)
        elif (skipped := skipped + len(part)) > _OTHER_BYTES:
            raise ClientException("The form has more than 1 MB before its file: send the file first")
    raise Invalid.field("file", "is missing: the form has no file")


async def _content(form: AsyncGenerator[MultipartSegment | bytearray, None]) -> AsyncGenerator[bytes, None]:
    """Up to the part's end; the rest of the form is read, and must be well-formed."""
    ours, skipped = True, 0
    async with aclosing(form):
        async for part in form:
            if isinstance(part, MultipartSegment):
                ours = False
            elif ours:
                yield bytes(part)
            elif (skipped := skipped + len(part)) > _OTHER_BYTES:
                raise ClientException("The form has more than 1 MB after its file")


async def _parsed(
    pieces: AsyncGenerator[bytes, None], boundary: str
) -> AsyncGenerator[MultipartSegment | bytearray, None]:
    try:
        parser = PushMultipartParser(boundary, max_segment_count=_OTHER_PARTS)
        async with aclosing(pieces):
            async for piece in pieces:
                if piece:
                    for part in _parts(parser, piece):
                        yield part
        parser.close()
    except (MultipartError, ValueError, UnicodeError) as error:
        raise ClientException(f"The form cannot be read: {error}") from None


def _parts(parser: PushMultipartParser, piece: bytes) -> Iterator[MultipartSegment | bytearray]:
    for part in parser.parse(piece):
        if part is not None:  # the end of a part
            yield part
