"""Resolvers of accounts."""

import msgspec

from ximler.accounts import registration, sessions
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
    await registration.register(
        ctx.database, ctx.keyring, ctx.settings, name=input.name, email=input.email, password=input.password
    )
    return Acceptance("Look into your mailbox: the link in our message makes the account.")


@resolvers.mutation("confirmEmail")
async def confirm_email(ctx: Context, token: str) -> User:
    return await registration.confirm(ctx.database, ctx.keyring, token)


@resolvers.mutation("signIn")
async def sign_in(ctx: Context, email: str, password: str) -> dict[str, object]:
    signed_in = await sessions.sign_in(
        ctx.database, ctx.keyring, ctx.settings, ctx.actor, email=email, password=password
    )
    return {"token": signed_in.token, "expires_at": signed_in.session.expires_at, "user": signed_in.user}


@resolvers.mutation("signOut")
async def sign_out(ctx: Context) -> bool:
    return await sessions.sign_out(ctx.database, ctx.actor)
