"""Media types of requests and responses (RFC 9110, section 12.5.1)."""

from collections.abc import Iterator
from functools import lru_cache

__all__ = ["EVENTS", "JSON", "PARTS", "RESPONSE_JSON", "choose_response_type", "choose_stream_type", "is_json"]

RESPONSE_JSON = b"application/graphql-response+json; charset=utf-8"
JSON = b"application/json; charset=utf-8"

EVENTS = b"text/event-stream"
PARTS = b"multipart/mixed;boundary=graphql;subscriptionSpec=1.0"

_NAMED = 2
_RANGES = {
    RESPONSE_JSON: {b"*/*": 0, b"application/*": 1, b"application/graphql-response+json": _NAMED},
    JSON: {b"*/*": 0, b"application/*": 1, b"application/json": _NAMED},
}


_LONGEST = 1024
"""Maximum bytes of a header, ten times what browsers send. Splitting megabytes of commas takes seconds."""


def choose_response_type(accept: bytes) -> bytes | None:
    """The media type of the response; None if the client accepts neither, or the header exceeds 1 kB.

    If a client prefers neither, the new type is chosen if it was named, else `application/json`, which is
    also the default without an Accept header.
    """
    return _choose(accept) if len(accept) <= _LONGEST else None


def choose_stream_type(accept: bytes) -> bytes | None:
    """The media type of a stream of responses, if the client names one:
    Server-Sent Events rather than multipart."""
    return _choose_stream(accept) if len(accept) <= _LONGEST else None


@lru_cache(maxsize=64)
def _choose_stream(accept: bytes) -> bytes | None:
    named = [_split(item) for item in accept.split(b",")]
    if any(media_type == EVENTS for media_type, _ in named):
        return EVENTS
    spec = b"subscriptionspec"
    return PARTS if any(kind == b"multipart/mixed" and given.get(spec) == b"1.0" for kind, given in named) else None


@lru_cache(maxsize=64)
def _choose(accept: bytes) -> bytes | None:
    if not accept.strip():
        return JSON
    best = None
    best_rank = (0.0, 0, False)
    accepted = list(_parse(accept))
    for offer, ranges in _RANGES.items():
        match = max(
            ((ranges[media_range], quality) for media_range, quality in accepted if media_range in ranges),
            default=None,
        )
        if match is not None and match[1] > 0:
            precision, quality = match
            named = precision == _NAMED
            rank = (quality, precision, named == (offer is RESPONSE_JSON))
            if rank > best_rank:
                best, best_rank = offer, rank
    return best


def is_json(content_type: bytes) -> bool:
    """Whether the type is JSON in UTF-8. Browsers never send such a type without a preflight."""
    return len(content_type) <= _LONGEST and _is_json(content_type)


@lru_cache(maxsize=64)
def _is_json(content_type: bytes) -> bool:
    media_type, parameters = _split(content_type)
    return media_type == b"application/json" and parameters.get(b"charset", b"utf-8") in (b"utf-8", b"utf8")


def _parse(accept: bytes) -> Iterator[tuple[bytes, float]]:
    for item in accept.split(b","):
        media_range, parameters = _split(item)
        if parameters.get(b"charset", b"utf-8") not in (b"utf-8", b"utf8"):
            continue
        try:
            quality = float(parameters.get(b"q", b"1"))
        except ValueError:
            continue
        yield media_range, quality if 0 <= quality <= 1 else 0.0


def _split(value: bytes) -> tuple[bytes, dict[bytes, bytes]]:
    media_type, *rest = value.lower().split(b";")
    pairs = (parameter.partition(b"=") for parameter in rest)
    return media_type.strip(), {name.strip(): given.strip().strip(b'"') for name, _, given in pairs}
