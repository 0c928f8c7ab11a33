"""A customer's own search: words of name and description by prefix, in any order, without regard to case or
accents.

In scripts that are written without spaces, every pair of neighbouring characters is a term, and so is the
last character of a run: any part of it is found. Marks that carry meaning (vowels of Indic scripts, Thai
tones) are kept; accents of Latin, Greek and Cyrillic and vowel points of Hebrew and Arabic are not.

The specification's text index is for operators: with it, a common word reads everybody's projects that
contain it. Here every branch of the query starts with the user's id.

An index cannot return all words with a prefix in the order of time. The beginnings of each project's words
are therefore stored separately as `searchKeys`. One key selects the projects, in the index's order, and
the filter of `searchTerms` decides which of them match.
"""

import re
import unicodedata
import zlib
from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Any

__all__ = [
    "MAX_TERMS",
    "condition",
    "having",
    "in_name",
    "key",
    "keyed",
    "keys",
    "terms",
    "terms_of",
    "words",
]

MAX_TERMS = 200
_MAX_LENGTH = 40
_MAX_WORDS = 8  # of a query
_NAME = "="  # no word has it
_MAX_MARKED = 50  # terms of a name; those beyond count as of the description

_LENGTHS = (1, 2, 3, 5)  # lengths of the beginnings that have keys

# Letters that Unicode does not decompose.
_FOLDED = str.maketrans(
    {"ł": "l", "ø": "o", "đ": "d", "ð": "d", "þ": "th", "ħ": "h", "ŧ": "t", "æ": "ae", "œ": "oe", "ı": "i"}
    | {"\u200c": None, "\u200d": None, "\u0640": None}  # joiners and Arabic's stretching are not part of a word
)
_ACCENTS = re.compile(
    "[\u0300-\u036f\u0483-\u0487\u0591-\u05bd\u05bf\u05c1\u05c2\u05c4\u05c5\u0610-\u061a\u064b-\u065f\u0670\u06d6-\u06dc"
    "\u06df-\u06e4\u06e7\u06e8\u06ea-\u06ed\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff\ufe20-\ufe2f]"
)
_PLAIN_WORD = re.compile(r"[^\W_]+")
# Thai, Lao, Tibetan, Myanmar, Khmer, kana, Han
_UNSPACED = re.compile(
    "[\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\uff66-\uff9f\U00020000-\U0003ffff]"
)


def terms(name: str | None, description: str | None = None) -> list[str]:
    """The distinct normalised terms, in order, at most 200 of at most 40 characters: the value of
    `searchTerms`. Those of the name are there once more, marked (`in_name`).
    """
    of_name = _terms(name)
    return list(dict.fromkeys([*map(in_name, of_name[:_MAX_MARKED]), *of_name, *_terms(description)]))[:MAX_TERMS]


def terms_of(stored: Mapping[str, Any]) -> list[str]:
    """`terms` of a stored project. Texts of another type, which another application wrote, have no words."""
    name, description = stored.get("name"), stored.get("description")
    return terms(name if isinstance(name, str) else None, description if isinstance(description, str) else None)


def keys(of: Iterable[str]) -> list[int]:
    """The value of `searchKeys` for these `terms`: hashes, because the filter of the terms follows."""
    found: dict[int, None] = {}
    for term in of:
        start = len(_NAME) if term.startswith(_NAME) else 0
        found |= {_key(term[: start + length]): None for length in _LENGTHS if start + length <= len(term)}
    return list(found)


def in_name(term: str) -> str:
    """The term as it is stored for the name."""
    return f"{_NAME}{term}"


def words(query: str) -> list[str]:
    """The distinct words of a query, at most eight; none of symbols alone."""
    found: dict[str, None] = {}
    for word in _words(_normal(query)):
        found |= dict.fromkeys([word[:_MAX_LENGTH]] if isinstance(word, str) else _pairs(word) or word)
    return list(found)[:_MAX_WORDS]


def having(beginnings: Iterable[str]) -> dict[str, Any]:
    """The filter of projects with a term for each of these beginnings."""
    return {"$and": [{"searchTerms": {"$regex": _start(each)}} for each in beginnings]}


def key(word: str, *, name: bool = False) -> int:
    """The member of `searchKeys` of the projects that may have this word (`name`: in their names)."""
    length = max(length for length in _LENGTHS if length <= len(word))
    return _key((_NAME if name else "") + word[:length])


def keyed(word: str, *, name: bool = False) -> dict[str, Any]:
    """The filter of projects that may have this word: a superset, to be filtered by `having`.

    It includes projects without keys: other applications wrote them, or the migration has not reached them.
    """
    return {"searchKeys": {"$in": [key(word, name=name), None]}}


def condition(query: str) -> dict[str, Any]:
    """The filter of a query: each of its words is a prefix of a term. An empty query matches every project.

    In projects without terms, which another application wrote, the query's words are searched for inside the
    texts as they are; so is, in every project, a query of symbols alone (`→`, an emoji).
    """
    given = words(query)
    if not given:
        return {"$or": _inside(query.strip())} if query.strip() else {}
    inside = [{"$or": _inside(word)} for word in _PLAIN_WORD.findall(query)[:_MAX_WORDS]]
    return {"$or": [having(given), {"$and": [{"searchTerms": None}, *inside]}]}


def _terms(text: str | None) -> list[str]:
    found: dict[str, None] = {}
    for word in _words(_normal(text or "")):
        found |= dict.fromkeys([word[:_MAX_LENGTH]] if isinstance(word, str) else [*_pairs(word), word[-1]])
    return list(found)


def _words(text: str) -> list[str | list[str]]:
    """The words of a normalised text; a run of an unspaced script as its characters, each with its marks."""
    if text.isascii():
        return list(_PLAIN_WORD.findall(text))
    found: list[str | list[str]] = []
    open_ = False  # whether the last word goes on
    for character in text:
        is_mark = unicodedata.category(character)[0] == "M"
        last = found[-1] if open_ else None
        if is_mark and isinstance(last, list):
            last[-1] += character
        elif is_mark and isinstance(last, str):
            found[-1] = last + character
        elif not character.isalnum():
            open_ = False
        elif _UNSPACED.match(character):
            if isinstance(last, list):
                last.append(character)
            else:
                found.append([character])
            open_ = True
        else:
            found[-1:] = [last + character] if isinstance(last, str) else [*found[-1:], character]
            open_ = True
    return found


def _key(text: str) -> int:
    return zlib.crc32(text.encode()) - 2**31  # an int32


def _pairs(run: list[str]) -> list[str]:
    return [one + other for one, other in pairwise(run)]


def _start(text: str) -> str:
    return f"^{re.escape(text)}"


def _inside(part: str) -> list[dict[str, Any]]:
    return [{field: {"$regex": re.escape(part), "$options": "i"}} for field in ("name", "description")]


def _normal(text: str) -> str:
    if text.isascii():
        return text.lower()
    # Decomposed before its case is folded: only then do 𝐀 and Ⓐ become a. Composed at the end: が is one
    # character.
    decomposed = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", text).casefold())
    return unicodedata.normalize("NFC", _ACCENTS.sub("", decomposed).translate(_FOLDED))
