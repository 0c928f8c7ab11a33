"""Conversion of names: camelCase in SDL, snake_case in Python."""

import keyword
import re

__all__ = ["snake"]

_WORD_START = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")


def snake(name: str) -> str:
    """The Python name of an SDL name: `apiCalls` → `api_calls`, `userID` → `user_id`, `from` → `from_`.

    A digit does not start a word (`address2` stays), so a Struct attribute named `address_2` is unreachable.
    """
    python = _WORD_START.sub("_", name).lower()
    return f"{python}_" if keyword.iskeyword(python) else python
