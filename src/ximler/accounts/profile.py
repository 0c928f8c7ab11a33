"""A user's name and notification settings."""

from collections.abc import Mapping
from typing import Any

from ximler.audit import records
from ximler.audit.actions import Action
from ximler.core import names
from ximler.core.actor import Actor
from ximler.core.errors import Invalid, NotFound
from ximler.database import Database
from ximler.schema.user import User

__all__ = ["change_notifications", "rename"]


async def rename(database: Database, actor: Actor, user: User, *, name: str) -> User:
    """Change the user's name. Raises Invalid if it is not a valid name."""
    return await _change(
        database, actor, user, Action.PROFILE_CHANGED, {"name": names.checked(name, most=names.MAX_PERSON)}
    )


async def change_notifications(database: Database, actor: Actor, user: User, wanted: Mapping[str, Any]) -> User:
    """Update the given settings (`{"email": {"product_updates": False}}`); the rest stays. Raises Invalid for
    a null.
    """
    changes: dict[str, Any] = {}
    for channel, kinds in wanted.items():
        if kinds is None:
            raise Invalid.field(channel, "must not be null: omit it to leave it unchanged")
        for kind, value in kinds.items():
            name = _camel(kind)
            if value is None:
                raise Invalid.field(f"{channel}.{name}", "must be true or false: omit it to leave it unchanged")
            changes[f"notificationSettings.{channel}.{name}"] = value
    return await _change(database, actor, user, Action.NOTIFICATIONS_CHANGED, changes)


async def _change(database: Database, actor: Actor, user: User, action: Action, changes: dict[str, Any]) -> User:
    """Writes and audits nothing if the values are unchanged."""
    if not changes:
        return user

    async def write(transaction: Database) -> User:
        now = await transaction.users.get(user.id)  # the actor's copy may be a second old
        before = {path: _value(now, path) for path in changes}
        if before == changes:
            return now
        changed = await transaction.users.find_and_patch({"_id": user.id}, {"$set": changes})
        if changed is None:
            raise NotFound("No such user")
        await records.write(
            transaction,
            actor,
            action,
            resource="users",
            resource_id=user.id,
            before=_nested(before),
            after=_nested(changes),
        )
        return changed

    return await database.transaction(write)


def _value(user: User, path: str) -> Any:
    found: Any = user
    for part in path.split("."):
        names = dict(zip(found.__struct_encode_fields__, found.__struct_fields__, strict=True))
        found = getattr(found, names[part])
    return found


def _nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """`{"a.b": 1}` as `{"a": {"b": 1}}`, because keys of stored values cannot contain dots."""
    found: dict[str, Any] = {}
    for path, value in values.items():
        *above, last = path.split(".")
        place = found
        for part in above:
            place = place.setdefault(part, {})
        place[last] = value
    return found


def _camel(name: str) -> str:
    head, *rest = name.split("_")
    return head + "".join(part.capitalize() for part in rest)
