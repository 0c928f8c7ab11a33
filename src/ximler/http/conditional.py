"""Conditional requests (RFC 9110, 13.1.2)."""

import re

__all__ = ["matches"]

_TAG = re.compile(r'(?:W/)?("[\x21\x23-\x7e\x80-\xff]*")')


def matches(if_none_match: str, etag: str) -> bool:
    """Whether `If-None-Match` names this entity tag, by weak comparison: `*`, one tag, or a list of them."""
    if if_none_match.strip() == "*":
        return True
    opaque = etag.removeprefix("W/")
    return any(found[1] == opaque for found in _TAG.finditer(if_none_match))
