"""Becoming a user: `register`, a confirmation link, `confirm`.

`register` never looks at the accounts: it stores a registration and answers the same, in the same time, for a new address, a
taken one and one that is waiting. Only whoever reads the mailbox learns more. A registration carries its own password, so an
attacker who registers a victim's address first gains nothing: the victim confirms the victim's link.
"""

import unicodedata
from datetime import timedelta
from urllib.parse import quote

import structlog
from email_validator import EmailNotValidError, validate_email

from ximler.accounts.keyring import Keyring
from ximler.core.errors import Conflict, Invalid
from ximler.core.settings import Settings
from ximler.database import Database
from ximler.database.failures import DocumentExists
from ximler.schema.registration import REGISTRATIONS, Registration
from ximler.schema.user import User

__all__ = ["AccountExists", "address", "confirm", "person", "register"]

_VALIDITY = timedelta(hours=24)
_MAX_NAME = 100
_MAX_ADDRESS = 320  # 64 before the @, 255 after it
_UNSEEN = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})  # control, format (bidi overrides), surrogate, line, paragraph
_JOINERS = "\u200c\u200d"  # format characters too, and part of Persian and Indic spelling, and of emoji
_log = structlog.get_logger("ximler.accounts")


class AccountExists(Conflict):
    code = "ACCOUNT_EXISTS"


async def register(
    database: Database, keyring: Keyring, settings: Settings, *, name: str, email: str, password: str
) -> None:
    """Accept a registration. Raises Invalid for a name, address or password that cannot be one. One command.

    In development the confirmation link, valid for 24 hours, is logged.
    """
    name, email = person(name), address(email)
    hashed = await keyring.hash_password(password)
    token, token_id = keyring.new_token()
    await database[REGISTRATIONS].insert(
        Registration(id=token_id, name=name, email=email, password=hashed, expires_at=database.clock.now() + _VALIDITY)
    )
    if settings.development:
        _log.info("confirmation link", email=email, link=f"{settings.base_url}/confirm?token={quote(token)}")


async def confirm(database: Database, keyring: Keyring, token: str) -> User:
    """Make the account that the link's registration describes. The link works once.

    Raises Invalid for a token that is unknown, used or expired, AccountExists when the address has an account by now.
    """
    ids = keyring.token_ids(token)
    waiting = {"_id": {"$in": ids}, "expiresAt": {"$gt": database.clock.now()}}

    async def write(transaction: Database) -> User:
        found = await transaction[REGISTRATIONS].find_one(waiting) if ids else None
        if found is None:
            raise Invalid.field("token", "is not valid, or was used, or is older than 24 hours: register again")
        await transaction[REGISTRATIONS].delete({"_id": found.id})
        return await transaction.users.insert(
            User(name=found.name, email=found.email, password=found.password, email_verified=True)
        )

    try:
        return await database.transaction(write)
    except DocumentExists:
        raise AccountExists(
            "There is an account with this address already: sign in instead", fields={"email": "has an account"}
        ) from None


def address(email: str, field: str = "email") -> str:
    """An e-mail address as it is stored: lowercase, Unicode-normalised. Raises Invalid (RFC 5322, RFC 6531)."""
    if len(email) > _MAX_ADDRESS:  # looked at first: telling what is wrong with a megabyte takes a second
        raise Invalid.field(field, f"is longer than {_MAX_ADDRESS} characters")
    try:
        return validate_email(email.strip(), check_deliverability=False).normalized.lower()
    except EmailNotValidError as problem:
        raise Invalid.field(field, str(problem).rstrip(".")) from None


def person(name: str, field: str = "name") -> str:
    """A person's name as it is stored. Raises Invalid."""
    name = name.strip()
    if not name.strip(_JOINERS):
        raise Invalid.field(field, "is required and must not be empty")
    if len(name) > _MAX_NAME:
        raise Invalid.field(field, f"is longer than {_MAX_NAME} characters")
    if any(unicodedata.category(character) in _UNSEEN and character not in _JOINERS for character in name):
        raise Invalid.field(field, "must not contain control characters or line breaks")
    return name
