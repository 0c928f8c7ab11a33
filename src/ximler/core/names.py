"""Names that people choose: for themselves, for projects, for API keys. One rule for all of them."""

import re
import unicodedata

from ximler.core.errors import Invalid

__all__ = ["MAX_PERSON", "checked", "has_link"]

MAX_PERSON = 100  # characters of a person's name

# Controls, format characters (bidi overrides among them), surrogates, line and paragraph separators.
_FORBIDDEN = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
_JOINERS = "\u200c\u200d"  # format characters too, and part of Persian and Indic spelling, and of emoji
_BLANK = "\u115f\u1160\u2800\u3164\uffa0\ufffc\U0001d159"  # letters and symbols without ink
# Other characters that Unicode says to ignore (Default_Ignorable_Code_Point) and no spelling needs: fillers
# and joiners of Hangul, Khmer and graphemes, and unassigned ones. Variation selectors belong to emoji and
# kanji.
_IGNORABLE = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u2065\u3164\uffa0") | {chr(n) for n in range(0xFFF0, 0xFFF9)}
# Letters, numbers, punctuation, symbols, and characters newer than this Python's Unicode. Marks need one of
# them.
_VISIBLE = "LNPS"
_UNKNOWN = ("Cn", "Co")
# Schemes that mail programs open, `//host`, `www.`, and a domain or IPv4 address that a path or port follows.
# A bare domain is a name (Booking.com): no mail to an unconfirmed address contains a name.
_LINK = re.compile(
    r"[a-z][a-z0-9+.-]{1,20}:[/\\]{2}|(?<![\w/])//\w|\b(?:https?|ftp|javascript|vbscript|mailto):[^\s)]"
    r"|\b(?:www|ftp)[.。]\w|\b[\w-]+[.。](?:[^\W\d_]{2,24}|xn--[a-z0-9-]{2,59}|\d{1,3}[.]\d{1,3}[.]\d{1,3})(?::\d{2,5}\b|[/?#]\S)",
    re.IGNORECASE,
)


def checked(name: str, *, most: int, field: str = "name") -> str:
    """The name as it is stored: trimmed and composed (NFC).

    Raises Invalid for a name that is invisible or longer than `most` characters, or contains control or
    invisible characters or a link, because mail programs make links in text clickable.
    """
    name = name.strip()
    if len(name) <= most:
        name = unicodedata.normalize("NFC", name)
    if not any(_is_visible(each) for each in name[: most + 1]):
        raise Invalid.field(field, "is required and must contain a visible character")
    if len(name) > most:
        raise Invalid.field(field, f"is longer than {most} characters")
    if any(_is_hidden(each) for each in name):
        raise Invalid.field(field, "must not contain control characters, invisible characters or line breaks")
    if has_link(name):
        raise Invalid.field(field, "must not contain a link")
    return name


def has_link(text: str) -> bool:
    """Whether mail programs may make a link of a part of it."""
    return _LINK.search(unicodedata.normalize("NFKC", text)) is not None  # in which ｗｗｗ．is www.


def _is_hidden(character: str) -> bool:
    forbidden = unicodedata.category(character) in _FORBIDDEN and character not in _JOINERS
    return forbidden or character in _IGNORABLE


def _is_visible(character: str) -> bool:
    category = unicodedata.category(character)
    return (category[0] in _VISIBLE or category in _UNKNOWN) and character not in _BLANK
