"""The few pages that people meet outside the console: the front door, and where confirmation links lead."""

import html
from typing import Annotated, Any
from urllib.parse import quote

import msgspec
from litestar import MediaType, Request, Response, get, post
from litestar.datastructures import State
from litestar.enums import RequestEncodingType
from litestar.exceptions import ValidationException
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import Body, QueryParameter
from litestar.types import ExceptionHandlersMap

from ximler.accounts import credentials, email_change, preferences, registration
from ximler.core.actor import Actor
from ximler.core.errors import XimlerError
from ximler.http.problems import documented, headers_of, status_of

__all__ = ["routes"]

_MAX_USER_AGENT = 300
_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:36rem;margin:15vh auto;padding:0 1.5rem;color:#1a1a1a}"
    "h1{font-size:1.5rem}a{color:#0b57d0}button{font:inherit;padding:.6rem 1.2rem;border:0;border-radius:.4rem;"
    "background:#0b57d0;color:#fff;cursor:pointer}code{background:#f1f3f4;padding:.1rem .3rem;border-radius:.2rem}"
    "input{font:inherit;padding:.5rem;width:100%;box-sizing:border-box}"
    "@media(prefers-color-scheme:dark){body{background:#121212;color:#e6e6e6}a{color:#8ab4f8}code{background:#2a2a2a}}"
)
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; frame-ancestors 'none'",
    "Cache-Control": "no-store",
    "referrer-policy": "no-referrer",
}


@get("/", include_in_schema=False, media_type=MediaType.HTML)
async def front_door() -> Response[str]:
    return _page(
        "Ximler is running",
        "<ul><li><a href='/docs'>API documentation</a></li>"
        "<li>GraphQL: <code>POST /graphql</code></li>"
        "<li>Health: <a href='/healthz'>/healthz</a>, <a href='/readyz'>/readyz</a>, <a href='/metrics'>/metrics</a></li></ul>",
    )


class Confirmation(msgspec.Struct, frozen=True):
    """Fields that were not filled in are empty, and refused by what they are for."""

    token: str = ""
    password: str = ""


class Address(msgspec.Struct, frozen=True):
    email: str = ""


def _sorry(_: Request[Any, Any, Any], error: XimlerError | ValidationException) -> Response[str]:
    """People come here, not programs: what went wrong is a page too."""
    if isinstance(error, ValidationException):
        return _page(
            "That did not work", "<p>This link is not complete: open it as our message has it.</p>", status=422
        )
    page = _page("That did not work", f"<p>{html.escape(error.message)}</p>", status=status_of(error))
    page.headers.update(headers_of(error))
    return page


_ERRORS: ExceptionHandlersMap = {XimlerError: _sorry, ValidationException: _sorry}


def _page_of(summary: str, **reasons: str) -> dict[str, Any]:
    """What these routes have in common; `reasons` are the statuses (`_422="…"`) of a page that says what is wrong."""
    pages = {
        int(status[1:]): ResponseSpec(str, description=reason, media_type=MediaType.HTML, generate_examples=False)
        for status, reason in reasons.items()
    }
    return {
        "tags": ["accounts"],
        "summary": summary,
        "media_type": MediaType.HTML,
        "status_code": 200,
        "exception_handlers": _ERRORS,
        "responses": documented(_400="The request cannot be read", _413="The form is too long") | pages,
    }


_Token = Annotated[str, QueryParameter(max_length=200)]
_UrlEncoded = Body(media_type=RequestEncodingType.URL_ENCODED)


@get("/confirm", **_page_of("Where a confirmation link leads", _422="The token is missing or too long"))
async def ask_confirmation(token: _Token) -> Response[str]:
    """Asks before it acts: mail scanners open links too, and must not use them up."""
    return _page(
        "Confirm your e-mail address",
        "<p>The password that you chose makes your account. If you did not ask for one, close this page.</p>"
        f"<form method='post' action='/confirm'>{_hidden(token)}"
        "<p><label>Your password<br><input name='password' type='password' required autocomplete='current-password'>"
        "</label></p><button>Make my account</button></form>",
    )


@post(
    "/confirm",
    **_page_of(
        "Make the account",
        _409="The address has an account by now",
        _422="The link is unknown, used or expired, or the password is not the one",
        _503="The database is away",
    ),
)
async def confirm(
    data: Annotated[Confirmation, _UrlEncoded], request: Request[Any, Any, Any], state: State
) -> Response[str]:
    """The confirmation page's form. Works once per link."""
    user = await registration.confirm(
        state.database, state.keyring, _visitor(request), data.token, password=data.password
    )
    return _page("Welcome", f"<p>The account of <b>{html.escape(user.email)}</b> is ready: you can sign in.</p>")


@get("/reset", **_page_of("Where a reset link leads", _422="The token is too long"))
async def ask_password(token: _Token = "") -> Response[str]:
    """A form for a new password, or without a token, for the address to send a link to."""
    if not token:
        return _page(
            "Choose a new password",
            "<form method='post' action='/reset/request'><p><label>Your e-mail address<br>"
            "<input name='email' type='email' required autocomplete='email'></label></p><button>Send me a link</button></form>",
        )
    return _page(
        "Choose a new password",
        f"<form method='post' action='/reset'>{_hidden(token)}<p><label>New password, 10 characters or more<br>"
        "<input name='password' type='password' minlength='10' required autocomplete='new-password'></label></p>"
        "<button>Change my password</button></form>",
    )


@post(
    "/reset",
    **_page_of(
        "Set a new password",
        _422="The link is unknown, used or expired, or the password cannot be one",
        _503="The database is away",
    ),
)
async def reset(
    data: Annotated[Confirmation, _UrlEncoded], request: Request[Any, Any, Any], state: State
) -> Response[str]:
    """The reset page's form. Works once per link, and ends every session."""
    visitor = _visitor(request)
    await credentials.reset(state.database, state.keyring, visitor, token=data.token, password=data.password)
    return _page(
        "Your password is changed", "<p>You can sign in with it. Everybody who was signed in is signed out.</p>"
    )


@post(
    "/reset/request",
    **_page_of(
        "Ask for a reset link",
        _422="What was sent is not an address",
        _429="Too many requests",
        _503="The database is away",
    ),
)
async def request_reset(
    data: Annotated[Address, _UrlEncoded], request: Request[Any, Any, Any], state: State
) -> Response[str]:
    """Says the same for every address."""
    await credentials.request_reset(state.database, state.keyring, _visitor(request), email=data.email)
    return _page("Look into your mailbox", "<p>If the address has an account, a link is on its way.</p>")


@get("/unsubscribe", **_page_of("Where an unsubscribe link leads", _422="The token is missing or too long"))
async def ask_unsubscribe(token: _Token) -> Response[str]:
    """Asks before it acts: mail scanners open links too."""
    action = html.escape(f"/unsubscribe?token={quote(token)}", quote=True)
    return _page(
        "No more product updates?",
        f"<form method='post' action='{action}'><button>Stop them</button></form>",
    )


@post("/unsubscribe", **_page_of("Stop product mail", _422="The link is not ours", _503="The database is away"))
async def unsubscribe(token: _Token, request: Request[Any, Any, Any], state: State) -> Response[str]:
    """The page's form, and what a mail program sends when its reader unsubscribes with one click (RFC 8058)."""
    await preferences.unsubscribe(state.database, state.keyring, _visitor(request), token)
    return _page("Done", "<p>We send you no more product updates. Mail about your account still comes.</p>")


@get("/email", **_page_of("Where the link of a change of address leads", _422="The token is missing or too long"))
async def ask_email(token: _Token) -> Response[str]:
    """Asks before it acts, and for the password: somebody else may have asked for this address."""
    return _page(
        "Confirm your new e-mail address",
        "<p>The password of your account makes this address its own. If you did not ask for that, close this page.</p>"
        f"<form method='post' action='/email'>{_hidden(token)}"
        "<p><label>Your password<br><input name='password' type='password' required autocomplete='current-password'>"
        "</label></p><button>Use this address</button></form>",
    )


@post(
    "/email",
    **_page_of(
        "Change the address",
        _409="The address has an account by now",
        _422="The link is unknown, used or expired, or the password is not the account's",
        _503="The database is away",
    ),
)
async def change_email(
    data: Annotated[Confirmation, _UrlEncoded], request: Request[Any, Any, Any], state: State
) -> Response[str]:
    """The page's form. Works once per link."""
    user = await email_change.confirm(
        state.database, state.keyring, _visitor(request), data.token, password=data.password
    )
    return _page("Your address is changed", f"<p>Your account is now that of <b>{html.escape(user.email)}</b>.</p>")


def _visitor(request: Request[Any, Any, Any]) -> Actor:
    """Whoever opened the page: only where they come from is known."""
    state = request.scope.get("state", {})
    agent = request.headers.get("user-agent", "")[:_MAX_USER_AGENT] or None
    return Actor(address=state.get("address"), user_agent=agent, request_id=state.get("request_id"))


def _hidden(token: str) -> str:
    return f"<input type='hidden' name='token' value='{html.escape(token, quote=True)}'>"


def _page(title: str, content: str, *, status: int = 200) -> Response[str]:
    document = (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width,initial-scale=1'>"
        f"<title>{title} · Ximler</title><style>{_STYLE}</style></head>"
        f"<body><main><h1>{title}</h1>{content}</main></body></html>"
    )
    return Response(document, status_code=status, media_type=MediaType.HTML, headers=_HEADERS)


routes = (
    front_door,
    ask_confirmation,
    confirm,
    ask_password,
    reset,
    request_reset,
    ask_unsubscribe,
    unsubscribe,
    ask_email,
    change_email,
)
