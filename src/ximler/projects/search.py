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
    """What a project must match: each word of the query begins one of its words. An empty query: every project.

    Projects that another application wrote have no terms; for those alone the words are looked for inside the texts, and
    so is, in every project, a query that is nothing but signs (`→`, an emoji).
    """
    words = terms(query)[:8]
    if not words:
        return {"$or": _inside(query.strip())} if query.strip() else {}
    ours = [{"searchTerms": {"$regex": f"^{re.escape(word)}"}} for word in words]
    inside = [{"$or": _inside(word)} for word in words]
    return {"$or": [{"$and": ours}, {"$and": [{"searchTerms": None}, *inside]}]}


def _inside(part: str) -> list[dict[str, Any]]:
    return [{field: {"$regex": re.escape(part), "$options": "i"}} for field in ("name", "description")]


def _normal(text: str) -> str:
    # Decomposed before its case is folded: only then do 𝐀 and Ⓐ become a.
    decomposed = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", text).casefold())
    return "".join(character for character in decomposed if not unicodedata.combining(character))
