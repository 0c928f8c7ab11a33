"""Resolvers of accounts."""

from datetime import datetime
from typing import Any

import msgspec

from ximler.accounts import (
    closing,
    credentials,
    email_change,
    profile,
    registration,
    second_factor_enrolment,
    sessions,
    step_up,
)
from ximler.graphql.context import Context, Once, Standing
from ximler.graphql.engine import Resolvers, Selected
from ximler.metering.reports.overview import with_subscriptions
from ximler.schema.user import User

UNLIMITED = frozenset({"__typename", "signOut", "revokeSession", "revokeOtherSessions", "closeAccount"})
"""Root fields that the rate of sessions' changes never refuses: ending a session must always be possible."""

resolvers = Resolvers()


class RegisterInput(msgspec.Struct, frozen=True):
    name: str
    email: str
    password: str


class Acceptance(msgspec.Struct, frozen=True):
    message: str
    accepted: bool = True


@resolvers.query("me")
async def me(ctx: Context, *, selected: Selected) -> User:
    user = ctx.require_user()
    if not ctx.standing and {"subscription", "usage"} <= selected.names:
        ctx.standing.append(Once(lambda: _standing(ctx)))
    return user


async def _standing(ctx: Context) -> Standing | None:
    return await with_subscriptions(ctx.database, ctx.actor, await ctx.plans.current())


@resolvers.mutation("register")
async def register(ctx: Context, input: RegisterInput) -> Acceptance:  # noqa: A002 (GraphQL's customary name)
    await registration.register(
        ctx.database, ctx.keyring, ctx.actor, name=input.name, email=input.email, password=input.password
    )
    return Acceptance("Check your email: the link that we sent you confirms the address and creates your account.")


@resolvers.mutation("confirmEmail")
async def confirm_email(ctx: Context, token: str, password: str) -> dict[str, object]:
    user = await registration.confirm(ctx.database, ctx.keyring, ctx.actor, token, password=password)
    return _signed_in(ctx, await sessions.start(ctx.database, ctx.keyring, ctx.settings, ctx.actor, user))


@resolvers.mutation("signIn")
async def sign_in(
    ctx: Context, email: str, password: str, code: str | None = None, device: str | None = None
) -> dict[str, object]:
    signed_in = await sessions.sign_in(
        ctx.database,
        ctx.keyring,
        ctx.settings,
        ctx.actor,
        email=email,
        password=password,
        code=code,
        device=device,
    )
    return _signed_in(ctx, signed_in)


@resolvers.mutation("refreshSession")
async def refresh_session(ctx: Context) -> dict[str, object]:
    user = ctx.require_user()
    return _signed_in(ctx, await sessions.refresh(ctx.database, ctx.keyring, ctx.settings, ctx.actor, user))


@resolvers.mutation("signOut")
async def sign_out(ctx: Context) -> bool:
    if ctx.cookies is not None:
        ctx.reply_headers.append(ctx.cookies.take())
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
        ctx,
        await credentials.change(ctx.database, ctx.keyring, ctx.settings, ctx.actor, user, current=current, new=new),
    )


@resolvers.mutation("requestPasswordReset")
async def request_password_reset(ctx: Context, email: str) -> Acceptance:
    await credentials.request_reset(ctx.database, ctx.keyring, ctx.actor, email=email)
    return Acceptance("If the address has an account, a link to choose a new password is on its way.")


@resolvers.mutation("resetPassword")
async def reset_password(ctx: Context, token: str, password: str) -> bool:
    await credentials.reset(ctx.database, ctx.keyring, ctx.actor, token=token, password=password)
    return True


@resolvers.mutation("closeAccount")
async def close_account(ctx: Context) -> dict[str, object]:
    return {"erased_at": await closing.close(ctx.database, ctx.actor, ctx.require_user())}


@resolvers.mutation("reopenAccount")
async def reopen_account(
    ctx: Context, email: str, password: str, code: str | None = None, device: str | None = None
) -> dict[str, object]:
    signed_in = await closing.reopen(
        ctx.database,
        ctx.keyring,
        ctx.settings,
        ctx.actor,
        email=email,
        password=password,
        code=code,
        device=device,
    )
    return _signed_in(ctx, signed_in)


@resolvers.mutation("reauthenticate")
async def reauthenticate(ctx: Context, password: str, code: str | None = None) -> datetime:
    user = ctx.require_user()
    return await step_up.reauthenticate(ctx.database, ctx.keyring, ctx.actor, user, password=password, code=code)


@resolvers.mutation("updateProfile")
async def update_profile(ctx: Context, name: str) -> User:
    return await profile.rename(ctx.database, ctx.actor, ctx.require_user(), name=name)


@resolvers.mutation("updateNotificationSettings")
async def update_notification_settings(ctx: Context, input: dict[str, Any]) -> User:  # noqa: A002 (as above)
    return await profile.change_notifications(ctx.database, ctx.actor, ctx.require_user(), input)


@resolvers.mutation("requestEmailChange")
async def request_email_change(ctx: Context, email: str) -> Acceptance:
    await email_change.request(ctx.database, ctx.keyring, ctx.actor, ctx.require_user(), email=email)
    return Acceptance("Check the new address: the link that we sent there, with your password, confirms it.")


@resolvers.mutation("confirmEmailChange")
async def confirm_email_change(ctx: Context, token: str, password: str) -> bool:
    await email_change.confirm(ctx.database, ctx.keyring, ctx.actor, token, password=password)
    return True


@resolvers.mutation("cancelEmailChange")
async def cancel_email_change(ctx: Context) -> bool:
    return await email_change.cancel(ctx.database, ctx.actor)


@resolvers.query("secondFactor")
async def second_factor(ctx: Context) -> dict[str, object]:
    found = await second_factor_enrolment.status(ctx.database, ctx.actor)
    return {
        "enabled": found.since is not None,
        "since": found.since,
        "recovery_codes_left": found.recovery_codes_left,
    }


@resolvers.mutation("beginTotp")
async def begin_totp(ctx: Context) -> second_factor_enrolment.Enrolment:
    return await second_factor_enrolment.begin(ctx.database, ctx.keyring, ctx.actor, ctx.require_user())


@resolvers.mutation("confirmTotp")
async def confirm_totp(ctx: Context, code: str) -> list[str]:
    return await second_factor_enrolment.confirm(ctx.database, ctx.keyring, ctx.actor, ctx.require_user(), code=code)


@resolvers.mutation("disableTotp")
async def disable_totp(ctx: Context) -> bool:
    await second_factor_enrolment.disable(ctx.database, ctx.actor)
    return True


@resolvers.mutation("regenerateRecoveryCodes")
async def regenerate_recovery_codes(ctx: Context) -> list[str]:
    return await second_factor_enrolment.regenerate(ctx.database, ctx.actor, ctx.require_user().id)


def _signed_in(ctx: Context, found: sessions.SignedIn) -> dict[str, object]:
    """Return the new session to a browser with a session cookie as a cookie, which no script can read."""
    token: str | None = found.token
    if ctx.cookies is not None:
        seconds = ctx.settings.session_max_days * 24 * 3600
        ctx.reply_headers.append(ctx.cookies.give(found.token, seconds=seconds))
        token = None
    return {"token": token, "expires_at": found.session.expires_at, "user": found.user, "device": found.device}


def _session(ctx: Context, session: Any) -> dict[str, object]:
    return {
        "id": session.public_id,
        "current": session.id == ctx.actor.session_id,
        "address": session.address,
        "user_agent": session.user_agent,
        "place": session.place,
        "created_at": session.created_at,
        "expires_at": session.expires_at,
    }
