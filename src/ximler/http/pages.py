"""Pages for people outside the console: the front page, and the landing pages of links in mails."""

import base64
import hashlib
import re
from functools import lru_cache
from http import HTTPStatus
from importlib import resources
from typing import Annotated, Any, Literal
from urllib.parse import quote

import jinja2
import msgspec
from litestar import MediaType, Request, Response, get, post
from litestar.datastructures import State
from litestar.enums import RequestEncodingType
from litestar.exceptions import HTTPException, ValidationException
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import Body, QueryParameter
from litestar.types import ExceptionHandlersMap

from ximler.accounts import credentials, email_change, preferences, registration
from ximler.core import extensions
from ximler.core.actor import Actor
from ximler.core.errors import Invalid, XimlerError
from ximler.http.problems import HANDLERS, documented, headers_of, status_of

__all__ = ["inline", "page", "page_of", "routes"]

_MAX_USER_AGENT = 300
_of_extensions = {
    package: jinja2.PackageLoader(package)
    for package in extensions.packages()
    if (resources.files(package) / "templates").is_dir()
}
_templates = jinja2.Environment(
    # Templates of an extension have its package's name in front: `ximler_bookmarks/settings.html`.
    loader=jinja2.ChoiceLoader([jinja2.PackageLoader("ximler.http"), jinja2.PrefixLoader(_of_extensions)]),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
)
_CALLED = {"token": "link"}  # the names of fields in messages
_HEADERS = {
    "Cache-Control": "no-store",
    "referrer-policy": "no-referrer",
}


class Form(msgspec.Struct, frozen=True, kw_only=True):
    """A page with one button, and the field that it needs."""

    title: str
    action: str
    button: str
    text: str = ""
    field: Literal["password", "email"] | None = None
    label: str = ""
    autocomplete: str = ""
    wrong: str | None = None  # replaces the domain's message
    shortest: int | None = None
    spent: str = ""  # for a link that does not work any more
    another: str | None = None  # the page where people request another link

    def show(
        self, token: str | None, *, live: bool = True, value: str = "", error: str = "", status: int = 200
    ) -> Response[str]:
        """Raises LinkSpent unless the token is still `live`."""
        if not live:
            raise LinkSpent(self.spent, self.another)
        return page("form.html", **msgspec.structs.asdict(self), token=token, value=value, error=error, status=status)

    def again(self, token: str | None, error: Invalid, *, value: str = "") -> Response[str]:
        """The form again, with the error beside its field. Re-raises errors of other fields."""
        if self.spent and "token" in error.fields:
            raise LinkSpent(self.spent, self.another) from error
        if self.field not in error.fields:
            raise error
        return self.show(token, value=value, error=self.wrong or _sentences(error), status=status_of(error))


class LinkSpent(Invalid):
    """A link of a mail that was used already, has expired, or was never sent."""

    def __init__(self, message: str, another: str | None) -> None:
        super().__init__(message)
        self.another = another


def _sentences(error: XimlerError) -> str:
    """The error for people: without the names of fields, which no form shows."""
    if not isinstance(error, Invalid) or not error.fields:
        return error.message
    return " ".join(
        f"{problem}." if problem[:1].isupper() else f"The {_CALLED.get(name, name)} {problem}."
        for name, problem in ((name, str(problem).rstrip(".")) for name, problem in error.fields.items())
    )


_CONFIRM = Form(
    title="Confirm your e-mail address",
    action="/confirm",
    text="Enter the password you registered with to finish creating your account. "
    "If you did not register, close this page.",
    button="Create my account",
    field="password",
    label="Your password",
    autocomplete="current-password",
    wrong="That is not the password you registered with. Try again.",
    spent="This link was used already, or is older than 24 hours. If it created your account, sign in. Otherwise register "
    "again.",
)
_RESET = Form(
    title="Choose a new password",
    action="/reset",
    button="Change my password",
    field="password",
    label="New password, 10 characters or more",
    autocomplete="new-password",
    shortest=10,
    spent="This link was used already, or is older than an hour. If it changed your password, sign in. Otherwise ask for "
    "another link.",
    another="/reset",
)
_REQUEST_RESET = Form(
    title="Reset your password",
    action="/reset/request",
    button="Send me a link",
    field="email",
    label="Your e-mail address",
    autocomplete="email",
)
_CHANGE_EMAIL = Form(
    title="Confirm your new e-mail address",
    action="/email",
    text="Enter your account's password to use this address. If you did not request the change, close this page.",
    button="Use this address",
    field="password",
    label="Your password",
    autocomplete="current-password",
    wrong="That is not your account's password. Try again.",
    spent="This link was used already, or is older than 24 hours. If it changed your address, sign in with it. Otherwise "
    "request the change again.",
)


_ICON = (
    b'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32"><rect width="32" height="32" rx="7" fill="#0b57d0"/>'
    b'<path d="M9 9l14 14M23 9L9 23" stroke="#fff" stroke-width="4" stroke-linecap="round"/></svg>'
)
_THEN_S = 3  # until the application opens by itself


@get("/", include_in_schema=False, media_type=MediaType.HTML)
async def front_door(state: State) -> Response[str]:
    settings = state.authentication.settings
    return page("front.html", "Ximler is running", url=settings.base_url, app=settings.app_url, mailbox=state.mailbox)


@get("/favicon.ico", include_in_schema=False, opt={"api_calls": None, "quiet": True})
async def icon() -> Response[bytes]:
    return Response(_ICON, media_type="image/svg+xml", headers={"Cache-Control": "public, max-age=86400"})


def _done(state: State, title: str, text: str) -> Response[str]:
    """The end of a journey; the application opens next, where XIMLER_APP_URL names it."""
    url = state.authentication.settings.app_url
    answer = page("done.html", title, text=text, app=url)
    if url:
        answer.headers["Refresh"] = f"{_THEN_S};url={url}"
    return answer


class Confirmation(msgspec.Struct, frozen=True):
    """Missing fields are empty; the domain rejects them."""

    token: str = ""
    password: str = ""


class Address(msgspec.Struct, frozen=True):
    email: str = ""


def _sorry(request: Request[Any, Any, Any], error: XimlerError | HTTPException) -> Response[Any]:
    """Errors as pages, because people read them."""
    title = "That did not work"
    if isinstance(error, LinkSpent):
        url = request.app.state.authentication.settings.app_url
        return page(
            "done.html",
            title,
            text=error.message,
            app=url,
            label="Sign in",
            another=error.another,
            status=status_of(error),
        )
    if isinstance(error, XimlerError):
        answer = page("page.html", title, text=_sentences(error), status=status_of(error))
        answer.headers.update(headers_of(error))
        return answer
    if error.status_code == HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
        return page("page.html", title, text="That text is too long: go back and shorten it.", status=error.status_code)
    if isinstance(error, ValidationException):
        text = "This link is not complete: open it exactly as it is in the message."
        return page("page.html", title, text=text, status=422)
    problem: Response[Any] = HANDLERS[HTTPException](request, error)
    return problem


_ERRORS: ExceptionHandlersMap = {XimlerError: _sorry, HTTPException: _sorry}


def page_of(summary: str, *, tag: str = "accounts", **reasons: str) -> dict[str, Any]:
    """The options that pages share. `reasons` are the statuses (`_422="…"`) of error pages."""
    pages = {
        int(status[1:]): ResponseSpec(str, description=reason, media_type=MediaType.HTML, generate_examples=False)
        for status, reason in {"_413": "The form is too long", **reasons}.items()
    }
    return {
        "tags": [tag],
        "summary": summary,
        "media_type": MediaType.HTML,
        "status_code": 200,
        "exception_handlers": _ERRORS,
        "responses": documented(_400="The request cannot be read") | pages,
    }


_Token = Annotated[str, QueryParameter(max_length=200)]
_UrlEncoded = Body(media_type=RequestEncodingType.URL_ENCODED)


@get("/confirm", **page_of("Landing page of confirmation links", _422="The link is unknown, used or expired"))
async def ask_confirmation(token: _Token, state: State) -> Response[str]:
    """Asks for confirmation, because mail scanners open links."""
    return _CONFIRM.show(token, live=await registration.is_open(state.database, state.keyring, token))


@post(
    "/confirm",
    **page_of(
        "Create the account",
        _409="The address has an account already",
        _422="The link is unknown, used or expired, or the password is wrong",
        _503="The database is unavailable",
    ),
)
async def confirm(
    data: Annotated[Confirmation, _UrlEncoded], request: Request[Any, Any, Any], state: State
) -> Response[str]:
    """The confirmation page's form. Works once per link."""
    try:
        user = await registration.confirm(
            state.database, state.keyring, _visitor(request), data.token, password=data.password
        )
    except Invalid as error:
        return _CONFIRM.again(data.token, error)
    return _done(state, "Welcome", f"Your account {user.email} is ready. You can sign in.")


@get(
    ["/reset", "/reset/request"], **page_of("Landing page of reset links", _422="The link is unknown, used or expired")
)
async def ask_password(state: State, token: _Token = "") -> Response[str]:
    """A form for a new password; without a token, a form for the address to send a link to."""
    if not token:
        return _REQUEST_RESET.show(None)
    return _RESET.show(token, live=await credentials.is_open(state.database, state.keyring, token))


@post(
    "/reset",
    **page_of(
        "Set a new password",
        _422="The link is unknown, used or expired, or the password is not acceptable",
        _503="The database is unavailable",
    ),
)
async def reset(
    data: Annotated[Confirmation, _UrlEncoded], request: Request[Any, Any, Any], state: State
) -> Response[str]:
    """The reset page's form. Works once per link, and ends every session."""
    visitor = _visitor(request)
    try:
        await credentials.reset(state.database, state.keyring, visitor, token=data.token, password=data.password)
    except Invalid as error:
        return _RESET.again(data.token, error)
    return _done(state, "Your password is changed", "Sign in with it. All sessions were ended.")


@post(
    "/reset/request",
    **page_of(
        "Request a reset link",
        _422="The text is not an e-mail address",
        _429="Too many requests",
        _503="The database is unavailable",
    ),
)
async def request_reset(
    data: Annotated[Address, _UrlEncoded], request: Request[Any, Any, Any], state: State
) -> Response[str]:
    """Answers the same for every address."""
    try:
        await credentials.request_reset(state.database, state.keyring, _visitor(request), email=data.email)
    except Invalid as error:
        return _REQUEST_RESET.again(None, error, value=data.email)
    text = "Check your email: if the address has an account, a link is on its way."
    return page("page.html", "Check your email", text=text)


@get("/unsubscribe", **page_of("Landing page of unsubscribe links", _422="The token is missing or too long"))
async def ask_unsubscribe(token: _Token) -> Response[str]:
    """Asks for confirmation, because mail scanners open links."""
    form = Form(title="No more product updates?", action=f"/unsubscribe?token={quote(token)}", button="Unsubscribe")
    return form.show(None)


@post(
    "/unsubscribe",
    **page_of("Unsubscribe from product mail", _422="The link is not valid", _503="The database is unavailable"),
)
async def unsubscribe(token: _Token, request: Request[Any, Any, Any], state: State) -> Response[str]:
    """The page's form, and the request of a mail program's one-click unsubscribe (RFC 8058)."""
    await preferences.unsubscribe(state.database, state.keyring, _visitor(request), token)
    text = "You no longer receive product updates. Mail about your account still comes."
    return page("page.html", "You are unsubscribed", text=text)


@get("/email", **page_of("Landing page of address changes", _422="The link is unknown, used or expired"))
async def ask_email(token: _Token, state: State) -> Response[str]:
    """Asks for confirmation with the password, because another person may have requested the change."""
    return _CHANGE_EMAIL.show(token, live=await email_change.is_open(state.database, state.keyring, token))


@post(
    "/email",
    **page_of(
        "Change the address",
        _409="The address has an account already",
        _422="The link is unknown, used or expired, or the password is wrong",
        _503="The database is unavailable",
    ),
)
async def change_email(
    data: Annotated[Confirmation, _UrlEncoded], request: Request[Any, Any, Any], state: State
) -> Response[str]:
    """The page's form. Works once per link."""
    try:
        user = await email_change.confirm(
            state.database, state.keyring, _visitor(request), data.token, password=data.password
        )
    except Invalid as error:
        return _CHANGE_EMAIL.again(data.token, error)
    return _done(state, "Your address is changed", f"Your account's address is now {user.email}.")


def _visitor(request: Request[Any, Any, Any]) -> Actor:
    """The visitor of a page: only their address and browser are known."""
    state = request.scope.get("state", {})
    agent = request.headers.get("user-agent", "")[:_MAX_USER_AGENT] or None
    return Actor(address=state.get("address"), user_agent=agent, request_id=state.get("request_id"))


def page(template: str, title: str, *, status: int = 200, text: str = "", **values: Any) -> Response[str]:
    """A page that loads nothing, is not cached, and sends its forms to this site only."""
    document = _templates.get_template(template).render(title=title, text=text, **values)
    policy = (
        f"default-src 'none'; style-src {inline('style', document)}; img-src 'self'; form-action 'self'; base-uri 'none'; "
        "frame-ancestors 'none'"
    )
    headers = {"Content-Security-Policy": policy, **_HEADERS}
    return Response(document, status_code=status, media_type=MediaType.HTML, headers=headers)


def inline(tag: Literal["style", "script"], document: str) -> str:
    """The hashes of a page's own styles or scripts, for its Content-Security-Policy; `'none'` without any.

    Templates escape all values, so every element is ours.
    """
    found = re.findall(rf"<{tag}[^>]*>(.+?)</{tag}>", document, re.DOTALL)
    return " ".join(map(_hash_source, found)) or "'none'"


@lru_cache(maxsize=100)
def _hash_source(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


routes = (
    front_door,
    icon,
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
