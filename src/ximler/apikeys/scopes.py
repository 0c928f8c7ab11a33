"""Scopes of API keys. Fields and routes declare the scope they require;
a key has those it was created with."""

from collections.abc import Iterable

from ximler.core.actor import Actor
from ximler.core.errors import Forbidden, Invalid

__all__ = ["SCOPES", "ScopeMissing", "check", "require"]

SCOPES = {
    "account:read": "read your profile",
    "billing:read": "read your subscription, invoices, payments and credit balance",
    "billing:write": "buy, change, cancel and resume your subscription, which can charge your payment method",
    "notifications:read": "read your notifications",
    "notifications:write": "mark your notifications as read",
    "projects:read": "read your projects",
    "projects:write": "create, change, delete and restore your projects, and see those in the answers",
    "usage:read": "read your usage and limits",
    "usage:write": "record usage; only operators create keys with it",
}


class ScopeMissing(Forbidden):
    """`fields` names the required scope."""

    code = "SCOPE_MISSING"


GRANTED = frozenset({"usage:write"})  # by operators only: each event that is recorded is stored for good


def check(names: Iterable[str]) -> list[str]:
    """The scopes, sorted, without duplicates. Raises Invalid for an unknown scope, or if there is none."""
    wanted = sorted(set(names))
    if not wanted:
        raise Invalid.field("permissions", f"name at least one of {', '.join(SCOPES)}")
    if unknown := [name for name in wanted if name not in SCOPES]:
        raise Invalid.field("permissions", f"{unknown[0][:40]!r} is none of {', '.join(SCOPES)}")
    return wanted


def require(actor: Actor, scope: str | None, *, what: str) -> None:
    """Reject an API key without the scope; None rejects every key. Other credentials have no scopes and pass.

    Raises Forbidden, ScopeMissing.
    """
    if actor.via != "api_key":
        return
    if scope is None:
        raise Forbidden(f"{what} cannot be used with an API key: sign in as a person")
    if scope and scope not in actor.scopes:
        raise ScopeMissing(f"{what} needs a key with the scope {scope}", fields={"scope": scope})
