"""Who sends a request: nobody in particular, or the user whose session token it carries."""

from collections.abc import MutableMapping
from typing import Any

from ximler.accounts import sessions
from ximler.accounts.keyring import Keyring
from ximler.core.actor import Actor
from ximler.core.errors import Unauthenticated
from ximler.database import Database
from ximler.schema.user import User

__all__ = ["identify"]

_MAX_USER_AGENT = 300


async def identify(database: Database, keyring: Keyring, scope: MutableMapping[str, Any]) -> tuple[Actor, User | None]:
    """The actor, and their user document when they are signed in. One command with a token, none without.

    Raises Unauthenticated for a token that is malformed, unknown or expired: a request that claims to be somebody is never
    answered as if it came from nobody.
    """
    authorization, user_agent = "", None
    for name, value in scope["headers"]:
        if name == b"authorization":
            authorization = value.decode("latin-1")
        elif name == b"user-agent":
            user_agent = value.decode("latin-1")[:_MAX_USER_AGENT]
    state = scope.get("state", {})
    origin = {"address": state.get("address"), "user_agent": user_agent, "request_id": state.get("request_id")}
    if not authorization:
        return Actor(**origin), None
    scheme, _, token = authorization.partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise Unauthenticated("Send your session's token as 'Authorization: Bearer <token>'")
    session, user = await sessions.authenticate(database, keyring, token.strip())
    actor = Actor(
        kind="user",
        via="session",
        user_id=user.id,
        session_id=session.id,
        authenticated_at=session.proved_at,
        **origin,
    )
    return actor, user
