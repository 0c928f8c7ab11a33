"""The actor of an operation: user, channel and address. Every domain function that touches user data takes
one.
"""

from datetime import datetime
from typing import Literal

import msgspec
from bson import ObjectId

from ximler.core.errors import Forbidden, Unauthenticated

__all__ = ["SYSTEM", "Actor"]


class Actor(msgspec.Struct, frozen=True, kw_only=True):
    """`user_id` is set for a signed-in user; `session_id` when they came through a session, `api_key_id` when
    through a key.

    `member_id` is the signed-in user where they use a project of another user, `user_id`, who shares it with
    them. `sign_in_id` stays the same when the session's token is exchanged; `session_id` does not.
    `authenticated_at` is the session's latest authentication (`accounts.step_up`). `address` and `user_agent`
    come from the request; `trusted_proxies` decides which address is trusted.
    """

    kind: Literal["anonymous", "user", "operator", "system"] = "anonymous"
    via: Literal["http", "session", "api_key", "cli", "webhook", "worker"] = "http"
    user_id: ObjectId | None = None
    member_id: ObjectId | None = None
    session_id: bytes | None = None
    sign_in_id: bytes | None = None
    authenticated_at: datetime | None = None
    api_key_id: ObjectId | None = None
    scopes: frozenset[str] = frozenset()
    address: str | None = None
    user_agent: str | None = None
    request_id: str | None = None

    def require_user(self) -> ObjectId:
        """The signed-in user's id. Raises Unauthenticated."""
        if self.user_id is None:
            raise Unauthenticated("Sign in first: send the header 'Authorization: Bearer <token>'.")
        return self.user_id

    def require_operator(self) -> None:
        """Raises Unauthenticated, Forbidden."""
        if self.kind not in ("operator", "system"):
            if self.kind == "anonymous":
                self.require_user()
            raise Forbidden("Only operators may do this")


SYSTEM = Actor(kind="system", via="worker")
