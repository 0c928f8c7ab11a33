"""The format of an API key: `xim_`, 160 random bits in base62, and six characters of checksum.

    xim_3kTMd9PVyU0sLqf7Zc1aWb8nRxE0u4F2Q

The checksum detects typing errors, truncated keys and other strings without a look-up; it is not a secret.
The prefix lets scanners find keys that were published by mistake.
"""

import hashlib
import secrets
import zlib

__all__ = ["HINT", "PREFIX", "hash_of", "is_well_formed", "looks_like", "mint"]

PREFIX = "xim_"
HINT = 4

_DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_BITS = 160
_BODY = 27  # 62²⁷ > 2¹⁶⁰
_CHECK = 6  # 62⁶ > 2³²
_PAIRS = [first + second for first in _DIGITS for second in _DIGITS]
_LENGTH = len(PREFIX) + _BODY + _CHECK


def mint() -> str:
    """A new key."""
    body = PREFIX + _base62(secrets.randbits(_BITS), _BODY)
    return body + _checksum(body)


def looks_like(text: str) -> bool:
    """Whether the string has the prefix of a key."""
    return text.startswith(PREFIX)


def is_well_formed(text: str) -> bool:
    """Whether the string has a key's format and checksum."""
    return (
        len(text) == _LENGTH
        and text.startswith(PREFIX)
        and text.isascii()
        and _checksum(text[:-_CHECK]) == text[-_CHECK:]
    )


def hash_of(key: str | bytes) -> str:
    """The stored form. One round of SHA-256 suffices, because 160 random bits cannot be guessed."""
    return hashlib.sha256(key.encode() if isinstance(key, str) else key).hexdigest()


def _checksum(body: str) -> str:
    """Six digits, computed in pairs for speed: this runs for every presented string."""
    high, low = divmod(zlib.crc32(body.encode()), 62**2)
    first, middle = divmod(high, 62**2)
    return _PAIRS[first] + _PAIRS[middle] + _PAIRS[low]


def _base62(number: int, width: int) -> str:
    digits = []
    for _ in range(width):
        number, digit = divmod(number, 62)
        digits.append(_DIGITS[digit])
    return "".join(reversed(digits))
