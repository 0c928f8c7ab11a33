"""Sessions of browsers: sign-in to a cookie, refresh, sign-out.
Programs use GraphQL's `signIn` and a header."""

from datetime import datetime
from typing import Annotated, Any

import msgspec
from litestar import Request, Response, delete, post
from litestar.datastructures import State
from litestar.di import NamedDependency
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import JSONBody

from ximler.accounts import sessions
from ximler.core.actor import Actor
from ximler.core.errors import Unauthenticated
from ximler.http.authentication import Authentication, Caller, signed_in
from ximler.http.idempotency import IDEMPOTENT, KEY_ERRORS
from ximler.http.problems import JSON_ONLY, documented

__all__ = ["routes"]

_NO_STORE = {"Cache-Control": "no-store"}
_Text = Annotated[str, msgspec.Meta(max_length=1000)]


class Credentials(msgspec.Struct, frozen=True, rename="camel"):
    email: _Text
    password: _Text
    code: _Text | None = None  # second-factor code
    device: _Text | None = None  # from the answer of an earlier sign-in


class Person(msgspec.Struct, frozen=True, rename="camel"):
    id: str
    name: str
    email: str


class SignedIn(msgspec.Struct, frozen=True, rename="camel"):
    """The token itself is in the cookie, which scripts cannot read."""

    expires_at: datetime
    device: str
    user: Person


def _responses(**reasons: str) -> dict[int, ResponseSpec]:
    return documented(
        _400="The request cannot be read", _403="Sent by another site", _413="The body is too long", **reasons
    )


@post(
    "/v1/session",
    tags=["accounts"],
    summary="Sign in to a cookie",
    status_code=200,
    **IDEMPOTENT,
    responses=_responses(_401="Wrong e-mail address, password or code", _429="Too many attempts")
    | JSON_ONLY
    | KEY_ERRORS,
)
async def sign_in(request: Request[Any, Any, Any], state: State, data: JSONBody[Credentials]) -> Response[SignedIn]:
    """For same-origin pages only (Sec-Fetch-Site or Origin)."""
    authentication: Authentication = state.authentication
    authentication.cookies.require_own_page(request.method, dict(request.scope["headers"]))
    found = await sessions.sign_in(
        state.database,
        state.keyring,
        authentication.settings,
        _origin(request),
        email=data.email,
        password=data.password,
        code=data.code,
        device=data.device,
    )
    return _answer(authentication, found)


@post(
    "/v1/session/refresh",
    **IDEMPOTENT,
    tags=["accounts"],
    summary="Exchange the session's cookie for a new one",
    status_code=200,
    responses=_responses(_401="The session is missing or has ended", _429="Too many changes") | KEY_ERRORS,
    **signed_in(),
)
async def refresh(state: State, caller: NamedDependency[Caller]) -> Response[SignedIn]:
    """The old token is invalid from now on. A client that may lose the answer sends an `Idempotency-Key`, and
    asks again with it; without a key, it signs in again. Use of the old token within ten seconds is refused
    (`SESSION_EXPIRED`); later use ends every session of the sign-in, because a copied token looks the same.
    """
    if not caller.by_cookie or caller.user is None:
        raise Unauthenticated("This is for a session's cookie: with a token, use GraphQL's refreshSession")
    authentication: Authentication = state.authentication
    found = await sessions.refresh(state.database, state.keyring, authentication.settings, caller.actor, caller.user)
    return _answer(authentication, found)


@delete(
    "/v1/session",
    tags=["accounts"],
    summary="Sign out",
    status_code=204,
    responses={
        204: ResponseSpec(None, description="The cookie is deleted", generate_examples=False),
        **_responses(),
    },
)
async def sign_out(request: Request[Any, Any, Any], state: State) -> Response[None]:
    """Ends the cookie's session and deletes the cookie. An ended session is no error."""
    authentication: Authentication = state.authentication
    response: Response[None] = Response(None, status_code=204, headers=_NO_STORE)
    try:
        caller = await authentication.identify(request.scope)  # type: ignore[arg-type]  # ASGI's, typed by two libraries
    except Unauthenticated:
        pass
    else:
        if caller.by_cookie:
            await sessions.sign_out(state.database, caller.actor)
    _set(response, authentication.cookies.take())
    return response


def _answer(authentication: Authentication, found: sessions.SignedIn) -> Response[SignedIn]:
    user = Person(str(found.user.id), found.user.name, found.user.email)
    response = Response(SignedIn(found.session.expires_at, found.device, user), status_code=200, headers=_NO_STORE)
    _set(response, authentication.cookies.give(found.token, seconds=authentication.cookie_seconds))
    return response


def _set(response: Response[Any], header: tuple[bytes, bytes]) -> None:
    response.headers[header[0].decode()] = header[1].decode()


def _origin(request: Request[Any, Any, Any]) -> Actor:
    known = request.scope.get("state", {})
    agent = request.headers.get("user-agent", "")[:300] or None
    return Actor(address=known.get("address"), user_agent=agent, request_id=known.get("request_id"))


routes = (sign_in, refresh, sign_out)
