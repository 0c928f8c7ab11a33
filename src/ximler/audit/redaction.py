"""Redaction: secrets are removed from entries, personal values are marked.

Both are decided by the field's name, at any depth, so that a domain cannot forget to declare a new field.
Names are split into words first: `passwordResetToken` consists of password, reset and token.
"""

import re
from collections.abc import Mapping
from datetime import datetime
from functools import lru_cache
from typing import Any

__all__ = ["REDACTED", "cleaned", "personal_paths"]

REDACTED = "[redacted]"
_MAX_TEXT = 1000
_SECRET = frozenset({"password", "passphrase", "token", "secret", "hash", "code", "otp", "totp", "pin", "credential", "cookie",
                     "authorization", "signature"})  # fmt: skip
_NO_SECRET = frozenset({"couponCode", "errorCode", "statusCode", "countryCode", "currencyCode"})
_PERSONAL = frozenset({"email", "mail", "name", "address", "ip", "phone", "agent", "avatar", "description", "reason", "note",
                       "comment", "message", "subject", "label", "title", "device", "location"})  # fmt: skip
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")


def cleaned(value: Any) -> Any:
    """A copy of JSON-like `value` without secrets, with texts truncated to 1,000 characters."""
    if isinstance(value, Mapping):
        return {name: _redacted(inner) if _is_secret(name) else cleaned(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        items = value if isinstance(value, list | tuple) else sorted(value, key=str)
        return [cleaned(inner) for inner in items]
    if isinstance(value, str):
        text = str(value)
        return text if len(text) <= _MAX_TEXT else f"{text[:_MAX_TEXT]}…"
    return value


def personal_paths(metadata: Mapping[str, Any], prefix: str = "metadata") -> list[str]:
    """Paths of personal values in cleaned `metadata`. A list with a personal value is personal as a whole."""
    found = []
    for name, value in metadata.items():
        path = f"{prefix}.{name}"
        if value is None or isinstance(value, bool) or value == {} or value == []:
            continue
        if _is_personal(name):
            found.append(path)
        elif isinstance(value, dict):
            found += personal_paths(value, path)
        elif isinstance(value, list) and any(isinstance(item, dict) and personal_paths(item) for item in value):
            found.append(path)
    return found


def _redacted(value: Any) -> Any:
    """The presence of a secret may be recorded, its value not."""
    return value if value is None or isinstance(value, bool | datetime) else REDACTED


@lru_cache(maxsize=1024)
def _is_secret(name: object) -> bool:
    return name not in _NO_SECRET and not _words(name).isdisjoint(_SECRET)


@lru_cache(maxsize=1024)
def _is_personal(name: object) -> bool:
    return not _words(name).isdisjoint(_PERSONAL)


def _words(name: object) -> set[str]:
    words = {word.lower() for word in _WORD.findall(str(name))}
    return words | {word.removesuffix("s") for word in words} | {word.removesuffix("es") for word in words}
