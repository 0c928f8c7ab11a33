"""Conditional requests (RFC 9110, 13.1)."""

import re

__all__ = ["matches", "strong_tags"]

_TAG = re.compile(r'(?:W/)?("[\x21\x23-\x7e\x80-\xff]*")')


def matches(if_none_match: str, etag: str) -> bool:
    """Whether `If-None-Match` names this entity tag, by weak comparison: `*`, one tag, or a list of them."""
    if if_none_match.strip() == "*":
        return True
    opaque = etag.removeprefix("W/")
    return any(found[1] == opaque for found in _TAG.finditer(if_none_match))


def strong_tags(if_match: str) -> list[str]:
    """The entity tags that `If-Match` names, without their quotes. Weak ones never match, so they are left out."""
    return [found[1][1:-1] for found in _TAG.finditer(if_match) if not found[0].startswith("W/")]
