"""A user's API keys: create, list, change, rotate, revoke. Owns `apikeys`. `verification` authenticates keys.

The key is shown once, at creation; its SHA-256 is stored. Operators may manage any key, but operations that
show a new secret are open to them only on the command line.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, Literal

import msgspec
from bson import ObjectId
from msgspec import UNSET, UnsetType

from ximler.accounts import notices, step_up
from ximler.apikeys import scopes, tokens
from ximler.audit import records
from ximler.audit.actions import Action
from ximler.core import names
from ximler.core.actor import Actor
from ximler.core.clock import shifted
from ximler.core.errors import Conflict, Forbidden, Invalid, LimitExceeded, NotFound
from ximler.core.networks import parse_network
from ximler.database import Database
from ximler.schema.api_key import API_KEYS, ApiKey
from ximler.schema.document import Identified

__all__ = ["GRACE", "MAX_KEYS", "Made", "State", "change", "create", "mine", "revoke", "rotate", "state"]

GRACE = timedelta(days=1)
MAX_KEYS = 100  # active keys per user
_MAX_ENDED = 200  # revoked and expired ones that stay listed
_MAX_GRACE = timedelta(days=30)
_MAX_NAME = 100
_MAX_NETWORKS = 50

State = Literal["ACTIVE", "ROTATED", "EXPIRED", "REVOKED"]


class Made(msgspec.Struct, frozen=True):
    """A new key. `secret` is the key itself, which is not stored."""

    secret: str
    key: ApiKey


class KeyNotActive(Conflict):
    code = "API_KEY_NOT_ACTIVE"


class _Life(Identified, kw_only=True):
    revoked_at: datetime | None = None
    expires_at: datetime | None = None


async def create(
    database: Database,
    actor: Actor,
    *,
    name: str,
    permissions: Sequence[str],
    expires_at: datetime | None = None,
    allowed_addresses: Sequence[str] = (),
    user_id: ObjectId | None = None,
) -> Made:
    """Create a key for the actor, or on the command line for `user_id`. `allowed_addresses` are addresses or
    networks (CIDR).

    Requires a recent sign-in. Raises Unauthenticated, StepUpRequired, Invalid, LimitExceeded.
    """
    step_up.require(database, actor)
    owner = _owner(actor, user_id)
    if expires_at is not None and expires_at <= database.clock.now():
        raise Invalid.field("expiresAt", "lies in the past")
    secret = tokens.mint()
    key = ApiKey(
        user_id=owner,
        name=names.checked(name, most=_MAX_NAME),
        key_hash=tokens.hash_of(secret),
        permissions=_granted(actor, scopes.check(permissions)),
        expires_at=expires_at,
        hint=secret[-tokens.HINT :],
        allowed_addresses=_networks(allowed_addresses),
    )

    async def write(transaction: Database) -> ApiKey:
        await _require_room(transaction, owner, MAX_KEYS)
        await _record(transaction, actor, Action.KEY_CREATED, key, after=_audited(key))
        await notices.notify(transaction, owner, "api_key_created", hint=key.hint)
        return await transaction.api_keys.insert(key)

    return Made(secret, await database.transaction(write))


async def mine(database: Database, actor: Actor, *, user_id: ObjectId | None = None) -> list[ApiKey]:
    """The actor's keys, or for operators those of `user_id`, newest first, including revoked and expired
    ones.
    """
    owner = actor.require_user() if user_id is None else user_id
    if owner != actor.user_id:
        actor.require_operator()
    found = await database.api_keys.find({"userId": owner})
    return sorted(found, key=lambda key: (key.created_at, key.id), reverse=True)


async def change(
    database: Database,
    actor: Actor,
    key_id: ObjectId,
    *,
    name: str | UnsetType = UNSET,
    permissions: Sequence[str] | UnsetType = UNSET,
    allowed_addresses: Sequence[str] | UnsetType = UNSET,
) -> ApiKey:
    """Update the given fields. Additional scopes or addresses require a recent sign-in.

    Raises Unauthenticated, StepUpRequired, Invalid, NotFound.
    """
    wanted: dict[str, Any] = {}
    if name is not UNSET:
        wanted["name"] = names.checked(name, most=_MAX_NAME)
    if permissions is not UNSET:
        wanted["permissions"] = scopes.check(permissions)
    if allowed_addresses is not UNSET:
        wanted["allowedAddresses"] = _networks(allowed_addresses)

    async def write(transaction: Database) -> ApiKey:
        key = await _get(transaction, actor, key_id)
        if not set(wanted.get("permissions", ())) <= set(key.permissions) or "allowedAddresses" in wanted:
            step_up.require(database, actor)
        _granted(actor, wanted.get("permissions", ()), had=key.permissions)
        before = _audited(key)
        changed = {field: value for field, value in wanted.items() if before[field] != value}
        if not changed:
            return key
        after = await transaction.api_keys.find_and_patch({"_id": key.id}, {"$set": changed})
        if after is None:
            raise NotFound("No such key")
        old = {field: before[field] for field in changed}
        await _record(transaction, actor, Action.KEY_CHANGED, key, before=old, after=changed)
        return after

    return await database.transaction(write)


def _granted(actor: Actor, wanted: Sequence[str], *, had: Sequence[str] = ()) -> list[str]:
    """The scopes, checked. Raises Invalid, and Forbidden for one that only an operator grants."""
    asked = scopes.check(wanted) if wanted else []
    if (new := scopes.GRANTED.intersection(asked).difference(had)) and actor.kind not in ("operator", "system"):
        scope = min(new)
        problem = f"{scope} is granted by operators: ask for a key that has it (ximler keys create)"
        raise Forbidden(f"permissions: {problem}", fields={"permissions": problem})
    return asked


async def rotate(database: Database, actor: Actor, key_id: ObjectId, *, grace: timedelta = GRACE) -> Made:
    """Replace a key. The old one keeps working for `grace` (up to 30 days).

    The new key inherits scopes, addresses and expiry. Requires a recent sign-in. Raises Unauthenticated,
    StepUpRequired, Invalid, NotFound, KeyNotActive, LimitExceeded.
    """
    step_up.require(database, actor)
    if not timedelta() <= grace <= _MAX_GRACE:
        raise Invalid.field("graceHours", f"must be between 0 and {_MAX_GRACE // timedelta(hours=1)}")
    secret = tokens.mint()

    async def write(transaction: Database) -> ApiKey:
        old = await _get(transaction, actor, key_id)
        if actor.via != "cli" and old.user_id != actor.user_id:
            raise Forbidden("A new secret is its owner's alone: revoke the key instead")
        now = database.clock.now()
        if (was := state(old, now)) != "ACTIVE":
            raise KeyNotActive(f"This key is {was.lower()}: create a new one")
        fresh = ApiKey(
            user_id=old.user_id,
            name=old.name,
            key_hash=tokens.hash_of(secret),
            permissions=old.permissions,
            expires_at=None if old.expires_at is None else shifted(now, old.expires_at - old.created_at),
            hint=secret[-tokens.HINT :],
            allowed_addresses=old.allowed_addresses,
        )
        ends = now + grace if old.expires_at is None else min(old.expires_at, now + grace)
        guard = {"_id": old.id, "replacedBy": None, "revokedAt": None}
        if not await transaction.api_keys.patch(guard, {"$set": {"replacedBy": fresh.id, "expiresAt": ends}}):
            raise KeyNotActive("This key was rotated or revoked at the same moment")
        after = {"replacedBy": fresh.id, "expiresAt": ends}
        await _require_room(transaction, old.user_id, 2 * MAX_KEYS)  # each may overlap with its successor
        await _record(transaction, actor, Action.KEY_ROTATED, old, before={"expiresAt": old.expires_at}, after=after)
        await notices.notify(transaction, old.user_id, "api_key_created", hint=fresh.hint)
        return await transaction.api_keys.insert(fresh)

    return Made(secret, await database.transaction(write))


async def revoke(database: Database, actor: Actor, key_id: ObjectId) -> ApiKey:
    """Revoke a key permanently. Every process rejects it within a second. Idempotent.

    Raises Unauthenticated, NotFound.
    """

    async def write(transaction: Database) -> ApiKey:
        key = await _get(transaction, actor, key_id)
        if key.revoked_at is not None:
            return key
        now = database.clock.now()
        after = await transaction.api_keys.find_and_patch({"_id": key.id}, {"$set": {"revokedAt": now}})
        if after is None:
            raise NotFound("No such key")
        await _record(transaction, actor, Action.KEY_REVOKED, key, after={"revokedAt": now})
        return after

    return await database.transaction(write)


def state(key: ApiKey, now: datetime) -> State:
    """The key's state. ROTATED keys were replaced and still work."""
    if key.revoked_at is not None:
        return "REVOKED"
    if key.expires_at is not None and key.expires_at <= now:
        return "EXPIRED"
    return "ACTIVE" if key.replaced_by is None else "ROTATED"


async def _require_room(transaction: Database, owner: ObjectId, most: int) -> None:
    """Raises LimitExceeded. Writes the owner's document,
    so that concurrently created keys count each other.

    Removes the oldest ended keys beyond a limit, because users may create any number of keys over time; the
    audit log keeps their history.
    """
    await transaction.users.patch({"_id": owner}, {})
    now = transaction.clock.now()
    found = await transaction.api_keys.find({"userId": owner}, into=_Life)
    ended = [key for key in found if key.revoked_at or (key.expires_at and key.expires_at <= now)]
    if len(found) - len(ended) >= most:
        raise LimitExceeded(f"There are {most} keys already: revoke one that is not needed")
    if len(ended) > _MAX_ENDED:
        ended.sort(key=lambda key: key.id)
        surplus = [key.id for key in ended[:-_MAX_ENDED]]
        await transaction.api_keys.delete_many({"userId": owner, "_id": {"$in": surplus}})


def _owner(actor: Actor, user_id: ObjectId | None) -> ObjectId:
    if user_id is None:
        return actor.require_user()
    if user_id != actor.user_id and actor.via != "cli":
        raise Forbidden("A key is made by its owner, or at the command line")
    return user_id


async def _get(transaction: Database, actor: Actor, key_id: ObjectId) -> ApiKey:
    where: dict[str, Any] = {"_id": key_id}
    if actor.kind not in ("operator", "system"):
        where["userId"] = actor.require_user()
    key = await transaction.api_keys.find_one(where)
    if key is None:
        raise NotFound("No such key")
    return key


async def _record(transaction: Database, actor: Actor, action: Action, key: ApiKey, **details: Any) -> None:
    await records.write(
        transaction, actor, action, resource=API_KEYS.name, resource_id=key.id, user_id=key.user_id, **details
    )


def _audited(key: ApiKey) -> dict[str, Any]:
    """The audited fields of a key, without secrets."""
    return {
        "name": key.name,
        "permissions": key.permissions,
        "allowedAddresses": key.allowed_addresses,
        "expiresAt": key.expires_at,
        "hint": key.hint,
    }


def _networks(texts: Sequence[str]) -> list[str]:
    """The networks in normal form. Raises Invalid."""
    if len(texts) > _MAX_NETWORKS:
        raise Invalid.field("allowedAddresses", f"must be at most {_MAX_NETWORKS}")
    found = []
    for text in texts:
        try:
            network = parse_network(text)
        except ValueError:
            problem = f"{text[:60]!r} is not an address or network, such as 192.0.2.7 or 2001:db8::/32"
            raise Invalid.field("allowedAddresses", problem) from None
        found.append(str(network))
    return found
