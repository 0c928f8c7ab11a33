"""Ids and cursors of the public API. Parsing is strict, and errors name the argument."""

import base64
import hashlib
import re
import struct
from datetime import datetime

from bson import ObjectId

from ximler.core.clock import from_ms, to_ms
from ximler.core.errors import Invalid

__all__ = [
    "Position",
    "decode_cursor",
    "decode_distance",
    "decode_text",
    "encode_cursor",
    "encode_distance",
    "encode_text",
    "object_id",
]

_HEX = re.compile(r"[0-9a-f]{24}")
_CURSOR = re.compile(r"[A-Za-z0-9_-]{32}")
_TEXT_CURSOR = re.compile(r"[A-Za-z0-9_-]{22,}={0,2}")
_NO_TIME = b"\x80" + bytes(7)  # the lowest 64-bit number: no datetime reaches it

# The end of a page: the sort value (None if the document has none) and the document's id.
Position = tuple[datetime | None, ObjectId]


def object_id(text: str, field: str = "id") -> ObjectId:
    """An ObjectId from its 24 lowercase hexadecimal digits. Raises Invalid naming `field`."""
    if not _HEX.fullmatch(text):
        raise Invalid.field(field, f"{_shown(text)} is not an id (24 hexadecimal digits, in lower case)")
    return ObjectId(text)


def encode_cursor(position: Position, kind: bytes = b"cursor") -> str:
    """An opaque cursor (URL-safe, 32 characters) for a place in a list ordered by time and id.
    `kind` is the order's, if the list has several.
    """
    moment, oid = position
    return _encoded(kind, _NO_TIME if moment is None else to_ms(moment).to_bytes(8, "big", signed=True), oid)


def decode_cursor(text: str, field: str = "after", kind: bytes = b"cursor") -> Position:
    """The position of a cursor. Raises Invalid naming `field` if it was not made by `encode_cursor`."""
    moment, oid = _decoded(kind, text, field)
    if moment == _NO_TIME:
        return None, oid
    try:
        return from_ms(int.from_bytes(moment, "big", signed=True)), oid
    except OverflowError:
        raise _no_cursor(text, field) from None


def encode_distance(metres: float, oid: ObjectId) -> str:
    """The cursor of a list ordered by distance and id."""
    return _encoded(b"distance", struct.pack(">d", metres), oid)


def decode_distance(text: str, field: str = "after") -> tuple[float, ObjectId]:
    """Distance and id of a cursor. Raises Invalid naming `field` if it was not made by `encode_distance`."""
    packed, oid = _decoded(b"distance", text, field)
    return struct.unpack(">d", packed)[0], oid


def encode_text(text: str, oid: ObjectId) -> str:
    """The cursor of a list ordered by a text and id, which grows with the text."""
    return _encoded(b"text", text.encode(), oid)


def decode_text(text: str, field: str = "after") -> tuple[str, ObjectId]:
    """Text and id of a cursor. Raises Invalid naming `field` if it was not made by `encode_text`."""
    packed, oid = _decoded(b"text", text, field, _TEXT_CURSOR)
    try:
        return packed.decode(), oid
    except UnicodeDecodeError:
        raise _no_cursor(text, field) from None


def _encoded(kind: bytes, place: bytes, oid: ObjectId) -> str:
    body = place + oid.binary
    return base64.urlsafe_b64encode(_check(kind, body) + body).decode()


def _decoded(kind: bytes, text: str, field: str, form: re.Pattern[str] = _CURSOR) -> tuple[bytes, ObjectId]:
    if not form.fullmatch(text) or len(text) % 4:
        raise _no_cursor(text, field)
    raw = base64.urlsafe_b64decode(text)
    check, body = raw[:4], raw[4:]
    if check != _check(kind, body):
        raise _no_cursor(text, field)
    return body[:-12], ObjectId(body[-12:])


def _check(kind: bytes, body: bytes) -> bytes:
    """Detects typing errors, casual edits and cursors of other lists.
    Not a secret, because a cursor grants no rights."""
    return hashlib.sha256(kind + body).digest()[:4]


def _no_cursor(text: str, field: str) -> Invalid:
    return Invalid.field(field, f"{_shown(text)} is not a cursor: pass on an endCursor as it was received")


def _shown(text: str) -> str:
    """Cut before it is quoted: it may be 20 MB."""
    shown = repr(text[:60])
    return shown if len(shown) <= 60 else f"{shown[:57]}…'"
