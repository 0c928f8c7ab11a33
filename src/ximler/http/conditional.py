"""Conditional requests (RFC 9110, 13.1) and the choice of an encoding (12.5.3)."""

import re
from collections.abc import Sequence

__all__ = ["encoding_of", "matches", "strong_tags"]

_WEIGHT = re.compile(r"\s*q\s*=\s*(0(?:\.\d{0,3})?|1(?:\.0{0,3})?)\s*", re.IGNORECASE)
_TAG = re.compile(r'(?:W/)?("[\x21\x23-\x7e\x80-\xff]*")')


def matches(if_none_match: str, etag: str) -> bool:
    """Whether `If-None-Match` names this entity tag, by weak comparison: `*`, one tag, or a list of them."""
    if if_none_match.strip() == "*":
        return True
    opaque = etag.removeprefix("W/")
    return any(found[1] == opaque for found in _TAG.finditer(if_none_match))


def encoding_of(accepted: str, offered: Sequence[str]) -> str | None:
    """The encoding of `offered` (best first) with the highest weight in
    `Accept-Encoding`; None: the identity.

    A malformed weight counts as 0. The identity is preferred only where it
    is weighted higher than all others.
    """
    weights: dict[str, float] = {}
    for each in accepted.lower().split(","):
        name, given, parameter = each.partition(";")
        found = _WEIGHT.fullmatch(parameter)
        weights[name.strip()] = float(found[1]) if found else 0.0 if given else 1.0
    rest = weights.get("*", 0.0)
    weighted = {name: weights.get(name, rest) for name in offered}
    best = max(offered, key=lambda name: weighted[name])  # the first of equals
    return best if weighted[best] > 0 and weighted[best] >= weights.get("identity", 0.0) else None


def strong_tags(if_match: str) -> list[str]:
    """The entity tags that `If-Match` names, without their quotes.
    Weak ones never match, so they are left out."""
    return [found[1][1:-1] for found in _TAG.finditer(if_match) if not found[0].startswith("W/")]
