"""A customer's own search: words of name and description, by prefix, in any order, without regard to case or accents.

The specification's text index is for operators: with it a common word costs a read of everybody's projects that contain it.
Here every branch starts with the user's id.
"""

import re
import unicodedata
from typing import Any

__all__ = ["MAX_TERMS", "condition", "terms"]

MAX_TERMS = 200
_MAX_LENGTH = 40
_WORD = re.compile(r"[^\W_]+")


def terms(*texts: str | None) -> list[str]:
    """The distinct normalised words, in order, at most 200 of at most 40 characters: what `searchTerms` holds."""
    found: dict[str, None] = {}
    for text in texts:
        for word in _WORD.findall(_normal(text or "")):
            found[word[:_MAX_LENGTH]] = None
    return list(found)[:MAX_TERMS]


def condition(query: str) -> dict[str, Any]:
    """What a project must match: each word of the query begins one of its words. No words: every project.

    Projects that another application wrote have no terms; for those alone the words are looked for inside the texts.
    """
    words = terms(query)[:8]
    if not words:
        return {}
    ours = [{"searchTerms": {"$regex": f"^{re.escape(word)}"}} for word in words]
    inside = [
        {"$or": [{field: {"$regex": re.escape(word), "$options": "i"}} for field in ("name", "description")]}
        for word in words
    ]
    return {"$or": [{"$and": ours}, {"$and": [{"searchTerms": None}, *inside]}]}


def _normal(text: str) -> str:
    decomposed = unicodedata.normalize("NFKD", text.casefold())
    return "".join(character for character in decomposed if not unicodedata.combining(character))
