"""E-mail addresses: the form in which they are stored, and the forms under which an account may be found."""

from collections.abc import Iterable, Mapping
from typing import Any

from email_validator import EmailNotValidError, validate_email

from ximler.core.errors import Invalid
from ximler.database import Database
from ximler.schema.user import User

__all__ = ["MAX_ADDRESS", "alternatives", "first", "holder", "normalised"]

MAX_ADDRESS = 320  # 64 before the @, 255 after it


def normalised(email: str, field: str = "email") -> str:
    """An e-mail address as it is stored: lowercase, Unicode-normalised, its domain in Unicode. Raises Invalid
    (RFC 5322, RFC 6531).

    `x@münchen.de` and `x@xn--mnchen-3ya.de` are one address.
    """
    if len(email) > MAX_ADDRESS:  # first: validating a megabyte takes a second
        raise Invalid.field(field, f"is longer than {MAX_ADDRESS} characters")
    try:
        return validate_email(email.strip(), check_deliverability=False).normalized.lower()
    except EmailNotValidError as problem:
        raise Invalid.field(field, str(problem).rstrip(".")) from None


def alternatives(email: str) -> list[str]:
    """The forms in which an account's address may be stored, the normal one first: as typed too, in lower
    case, with an A-label.

    Other applications store what Ximler would write otherwise, or refuse (`root@localhost`). Several accounts
    may match: the first form counts.
    """
    typed = email.strip()
    if len(typed) > MAX_ADDRESS or "\0" in typed or not typed.isprintable():
        return []
    try:
        parsed = validate_email(typed, check_deliverability=False)
    except EmailNotValidError:
        forms = [typed.lower(), typed]
    else:
        normal = parsed.normalized.lower()
        forms = [normal, typed.lower(), typed, (parsed.ascii_email or normal).lower()]
    return list(dict.fromkeys(form for form in forms if form))


async def holder(database: Database, email: str, where: Mapping[str, Any] = {}) -> User | None:
    """The account with this address, closed or not, that matches `where`. One command."""
    forms = alternatives(email)
    # An aggregation, because filters of `find` are put into lower case.
    rows = await database.users.aggregate([{"$match": {"email": {"$in": forms}, **where}}])
    return first(database.users.readable(rows), forms)


def first(users: Iterable[User], forms: list[str]) -> User | None:
    """Of the users with one of these addresses, the one whose address comes first."""
    return min(users, key=lambda user: forms.index(user.email), default=None)
