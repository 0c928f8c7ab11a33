"""Operator roles. Granted on the command line only, which requires access to the database."""

from bson import ObjectId

from ximler.accounts import sessions
from ximler.audit import records
from ximler.audit.actions import Action
from ximler.core.actor import Actor
from ximler.core.errors import Forbidden, NotFound
from ximler.database import Database
from ximler.schema.credential import CREDENTIALS, Credential, Role

__all__ = ["grant", "withdraw"]


async def grant(database: Database, actor: Actor, user_id: ObjectId, role: Role) -> bool:
    """Give a user a role; False if they already have it. It applies to existing sessions.

    Raises NotFound, Forbidden outside the command line.
    """
    return await _set(database, actor, user_id, role)


async def withdraw(database: Database, actor: Actor, user_id: ObjectId) -> bool:
    """Withdraw a user's role; False if they have none. Ends their sessions.

    Raises NotFound, Forbidden outside the command line.
    """
    return await _set(database, actor, user_id, None)


async def _set(database: Database, actor: Actor, user_id: ObjectId, role: Role | None) -> bool:
    actor.require_operator()
    if actor.via != "cli":
        raise Forbidden("Roles are granted on the command line: ximler users grant")

    async def write(transaction: Database) -> bool:
        if not await transaction.users.patch({"_id": user_id}, {}):
            raise NotFound("No such user")
        found = await transaction[CREDENTIALS].find_one({"_id": user_id})
        before = found.role if found else None
        if before == role:
            return False
        change = {"$set": {"role": role}} if role else {"$unset": {"role": ""}}
        await transaction[CREDENTIALS].upsert({"_id": user_id}, change, fresh=Credential(id=user_id))
        if role is None:
            await sessions.revoke_all(transaction, user_id)
        await records.write(
            transaction,
            actor,
            Action.ROLE_GRANTED if role else Action.ROLE_WITHDRAWN,
            resource="users",
            resource_id=user_id,
            user_id=user_id,
            before={"role": before},
            after={"role": role},
        )
        return True

    return await database.transaction(write)
