"""The kind of a file, by the signatures of its first bytes; its name and the sender's claim do not count.

Types that a browser could run are never shown on the origin of the application: `shown` is a list of those
that are. Anything unknown is `application/octet-stream`.
"""

import re

__all__ = ["HEAD", "UNKNOWN", "is_packed", "is_shown", "kind_of"]

HEAD = 4096  # bytes that `kind_of` needs
UNKNOWN = "application/octet-stream"

_SIGNATURES = (
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF87a", "image/gif"),
    (b"GIF89a", "image/gif"),
    (b"%PDF-", "application/pdf"),
    (b"wOF2", "font/woff2"),
    (b"wOFF", "font/woff"),
    (b"\x00\x01\x00\x00\x00", "font/ttf"),
    (b"OTTO", "font/otf"),
    (b"PK\x03\x04", "application/zip"),
    (b"PK\x05\x06", "application/zip"),
    (b"\x1f\x8b\x08", "application/gzip"),
    (b"OggS", "audio/ogg"),
    (b"ID3", "audio/mpeg"),
    (b"fLaC", "audio/flac"),
    (b"\x1a\x45\xdf\xa3", "video/webm"),
)
_BRANDS = {b"avif": "image/avif", b"avis": "image/avif", b"qt  ": "video/quicktime", b"M4A ": "audio/mp4"}
_VIDEO_BRANDS = (b"isom", b"iso2", b"iso4", b"iso5", b"iso6", b"mp41", b"mp42", b"avc1", b"M4V ", b"dash")
_SHOWN = frozenset(
    {
        "image/png", "image/jpeg", "image/gif", "image/webp", "image/avif",
        "audio/ogg", "audio/mpeg", "audio/flac", "audio/wav", "audio/mp4", "video/mp4", "video/webm", "video/quicktime",
        "font/woff2", "font/woff", "font/ttf", "font/otf", "text/plain", "application/json",
    }
)  # fmt: skip
_PACKED = frozenset(
    {
        "image/png", "image/jpeg", "image/gif", "image/webp", "image/avif", "font/woff2", "font/woff",
        "application/zip", "application/gzip", "application/pdf",
    }
)  # fmt: skip
_BINARY = re.compile(rb"[\x00-\x08\x0b\x0e-\x1a\x1c-\x1f\x7f]")
# May precede the first element of a document.
_PROLOGUE = re.compile(rb"\s+|<\?.*?\?>|<!--.*?-->|<!DOCTYPE[^>\[]*(?:\[.*?\]\s*)?>", re.DOTALL | re.IGNORECASE)
_ROOT = re.compile(rb"<(?:[\w.-]+:)?svg[\s/>]", re.IGNORECASE)
_MARKUP = re.compile(rb"<[!?a-z/]", re.IGNORECASE)


def kind_of(head: bytes, tail: bytes) -> str:
    """The media type of a file with these first `HEAD` and last bytes."""
    for signature, kind in _SIGNATURES:
        if head.startswith(signature):
            return kind
    if head[:4] == b"RIFF":
        return {b"WEBP": "image/webp", b"WAVE": "audio/wav"}.get(head[8:12], UNKNOWN)
    if head[4:8] == b"ftyp":
        return _BRANDS.get(head[8:12]) or ("video/mp4" if head[8:12] in _VIDEO_BRANDS else UNKNOWN)
    return _text(head, tail)


def is_shown(kind: str) -> bool:
    """Whether a browser may show a file of this type in place, rather than download it."""
    return kind in _SHOWN


def is_packed(kind: str) -> bool:
    """Whether files of this type are compressed already."""
    return kind in _PACKED or kind.startswith(("video/", "audio/"))


def _text(head: bytes, tail: bytes) -> str:
    if not head or _BINARY.search(head) or not _is_utf8(head):
        return UNKNOWN
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if _MARKUP.match(text):
        place = 0
        while found := _PROLOGUE.match(text, place):
            place = found.end()
        if _ROOT.match(text, place):
            return "image/svg+xml"
        return "application/xml" if text.startswith(b"<?xml") else "text/html"
    ends = tail.rstrip()[-1:]
    if (text[:1], ends) in ((b"{", b"}"), (b"[", b"]")):
        return "application/json"
    return "text/plain"


def _is_utf8(head: bytes) -> bool:
    """The last character may be cut off."""
    try:
        head.decode()
    except UnicodeDecodeError as error:
        return len(head) >= HEAD and error.start >= len(head) - 3 and error.reason == "unexpected end of data"
    return True
