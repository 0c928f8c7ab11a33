"""Resolvers of accounts."""

from typing import Any

import msgspec

from ximler.accounts import closing, credentials, registration, sessions
from ximler.graphql.context import Context
from ximler.graphql.engine import Resolvers
from ximler.schema.user import User

resolvers = Resolvers()


class RegisterInput(msgspec.Struct, frozen=True):
    name: str
    email: str
    password: str


class Acceptance(msgspec.Struct, frozen=True):
    message: str
    accepted: bool = True


@resolvers.query("me")
async def me(ctx: Context) -> User:
    return ctx.require_user()


@resolvers.mutation("register")
async def register(ctx: Context, input: RegisterInput) -> Acceptance:  # noqa: A002 (GraphQL's customary name)
    await registration.register(ctx.database, ctx.keyring, name=input.name, email=input.email, password=input.password)
    return Acceptance("Look into your mailbox: the link in our message makes the account.")


@resolvers.mutation("confirmEmail")
async def confirm_email(ctx: Context, token: str, password: str) -> dict[str, object]:
    user = await registration.confirm(ctx.database, ctx.keyring, token, password=password)
    return _signed_in(await sessions.start(ctx.database, ctx.keyring, ctx.settings, ctx.actor, user))


@resolvers.mutation("signIn")
async def sign_in(ctx: Context, email: str, password: str) -> dict[str, object]:
    signed_in = await sessions.sign_in(
        ctx.database, ctx.keyring, ctx.settings, ctx.actor, email=email, password=password
    )
    return _signed_in(signed_in)


@resolvers.mutation("signOut")
async def sign_out(ctx: Context) -> bool:
    return await sessions.sign_out(ctx.database, ctx.actor)


@resolvers.query("sessions")
async def list_sessions(ctx: Context) -> list[dict[str, object]]:
    return [_session(ctx, session) for session in await sessions.mine(ctx.database, ctx.actor)]


@resolvers.mutation("revokeSession")
async def revoke_session(ctx: Context, id: str) -> dict[str, object]:  # noqa: A002 (the argument's name in GraphQL)
    return _session(ctx, await sessions.revoke(ctx.database, ctx.actor, id))


@resolvers.mutation("revokeOtherSessions")
async def revoke_other_sessions(ctx: Context) -> int:
    return await sessions.revoke_others(ctx.database, ctx.actor)


@resolvers.mutation("changePassword")
async def change_password(ctx: Context, current: str, new: str) -> dict[str, object]:
    user = ctx.require_user()
    return _signed_in(
        await credentials.change(ctx.database, ctx.keyring, ctx.settings, ctx.actor, user, current=current, new=new)
    )


@resolvers.mutation("requestPasswordReset")
async def request_password_reset(ctx: Context, email: str) -> Acceptance:
    await credentials.request_reset(ctx.database, email=email)
    return Acceptance("If the address has an account, a link to choose a new password is on its way.")


@resolvers.mutation("resetPassword")
async def reset_password(ctx: Context, token: str, password: str) -> bool:
    await credentials.reset(ctx.database, ctx.keyring, token=token, password=password)
    return True


@resolvers.mutation("closeAccount")
async def close_account(ctx: Context) -> dict[str, object]:
    return {"erased_at": await closing.close(ctx.database, ctx.actor, ctx.require_user())}


@resolvers.mutation("reopenAccount")
async def reopen_account(ctx: Context, email: str, password: str) -> dict[str, object]:
    return _signed_in(
        await closing.reopen(ctx.database, ctx.keyring, ctx.settings, ctx.actor, email=email, password=password)
    )


def _signed_in(found: sessions.SignedIn) -> dict[str, object]:
    return {"token": found.token, "expires_at": found.session.expires_at, "user": found.user}


def _session(ctx: Context, session: Any) -> dict[str, object]:
    return {
        "id": session.public_id,
        "current": session.id == ctx.actor.session_id,
        "address": session.address,
        "user_agent": session.user_agent,
        "created_at": session.created_at,
        "expires_at": session.expires_at,
    }
