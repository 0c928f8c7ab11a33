"""E-mail addresses: their stored form, and the other forms under which an account may be found."""

import asyncio
import secrets
from collections.abc import Iterable, Mapping
from typing import Any

from email_validator import EmailNotValidError, validate_email

from ximler.core.errors import Invalid
from ximler.database import Database
from ximler.schema.user import User

__all__ = ["MAX_ADDRESS", "alternatives", "first", "holder", "masked", "normalised", "random_pause"]

MAX_ADDRESS = 320  # 64 before the @, 255 after it


def normalised(email: str, field: str = "email") -> str:
    """The stored form of an e-mail address: lowercase, Unicode-normalised, its domain in Unicode. Raises
    Invalid (RFC 5322, RFC 6531).

    `x@münchen.de` and `x@xn--mnchen-3ya.de` are one address.
    """
    if len(email) > MAX_ADDRESS:  # first: validating a megabyte takes a second
        raise Invalid.field(field, f"is longer than {MAX_ADDRESS} characters")
    try:
        # Strict: 64 characters at most before the @.
        normal = validate_email(email.strip(), check_deliverability=False, strict=True).normalized.lower()
    except EmailNotValidError as problem:
        raise Invalid.field(field, str(problem).rstrip(".")) from None
    if len(normal.rpartition("@")[0].encode()) > 64:  # octets (RFC 5321, 4.5.3.1.1; RFC 6531, 3.3)
        raise Invalid.field(field, "is longer than 64 bytes before the @-sign")
    return normal


def masked(email: str) -> str:
    """A form that tells a few people apart and identifies none: `b…@e….com` of `bob@example.com`."""
    name, _, domain = email.rpartition("@")
    return f"{name[:1]}…@{domain[:1]}….{domain.rpartition('.')[2]}"


async def random_pause() -> None:
    """Wait up to a quarter of a second, before work that differs for known and unknown addresses.

    Requests that are answered at the same moment are then slowed down by it as
    often for the one as for the other.
    """
    await asyncio.sleep(secrets.randbelow(250) / 1000)


def alternatives(email: str) -> list[str]:
    """Forms in which an account's address may be stored: the normal form first, then as typed, in lower case,
    and with an A-label.

    Other applications store forms that Ximler normalises or rejects (`root@localhost`). If several accounts
    match, the earliest form wins.
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
    # An aggregation, because `find` converts this filter to lower case.
    rows = await database.users.aggregate([{"$match": {"email": {"$in": forms}, **where}}])
    return first(database.users.readable(rows), forms)


def first(users: Iterable[User], forms: list[str]) -> User | None:
    """The user whose address comes first in `forms`."""
    return min(users, key=lambda user: forms.index(user.email), default=None)
