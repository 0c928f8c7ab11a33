"""Who sends a request: nobody in particular, or the user whose session token it carries."""

from collections.abc import Mapping, MutableMapping
from typing import Any

import msgspec

from ximler.accounts import sessions
from ximler.accounts.keyring import Keyring
from ximler.core.actor import Actor
from ximler.core.errors import Unauthenticated
from ximler.database import Database
from ximler.schema.user import User

__all__ = ["identify", "visitor"]

_MAX_USER_AGENT = 300


async def identify(database: Database, keyring: Keyring, scope: MutableMapping[str, Any]) -> tuple[Actor, User | None]:
    """The actor, and their user document when they are signed in. One command with a token, none without.

    Raises Unauthenticated for a token that is malformed, unknown or expired: a request that claims to be somebody is never
    answered as if it came from nobody.
    """
    nobody = visitor(scope)
    authorization = next((value.decode("latin-1") for name, value in scope["headers"] if name == b"authorization"), "")
    if not authorization:
        return nobody, None
    scheme, _, token = authorization.partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise Unauthenticated("Send your session's token as 'Authorization: Bearer <token>'")
    session, user = await sessions.authenticate(database, keyring, token.strip())
    actor = msgspec.structs.replace(
        nobody,
        kind="user",
        via="session",
        user_id=user.id,
        session_id=session.id,
        authenticated_at=session.proved_at,
    )
    return actor, user


def visitor(scope: Mapping[str, Any]) -> Actor:
    """Nobody in particular, from where the request comes."""
    agents = (value.decode("latin-1")[:_MAX_USER_AGENT] for name, value in scope["headers"] if name == b"user-agent")
    state = scope.get("state", {})
    return Actor(address=state.get("address"), user_agent=next(agents, None), request_id=state.get("request_id"))
