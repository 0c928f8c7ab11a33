"""The few pages that people meet outside the console: the front door, and where confirmation links lead."""

import html
from typing import Annotated, Any

from litestar import MediaType, Response, get, post
from litestar.datastructures import State
from litestar.enums import RequestEncodingType
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import Body, Parameter

from ximler.accounts import registration
from ximler.core.errors import XimlerError
from ximler.http.problems import documented, status_of

__all__ = ["ask_confirmation", "confirm", "front_door"]

_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:36rem;margin:15vh auto;padding:0 1.5rem;color:#1a1a1a}"
    "h1{font-size:1.5rem}a{color:#0b57d0}button{font:inherit;padding:.6rem 1.2rem;border:0;border-radius:.4rem;"
    "background:#0b57d0;color:#fff;cursor:pointer}code{background:#f1f3f4;padding:.1rem .3rem;border-radius:.2rem}"
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


@get(
    "/confirm",
    tags=["accounts"],
    summary="Where a confirmation link leads",
    media_type=MediaType.HTML,
    responses=documented(_400="The query string cannot be read", _422="The token is missing or too long"),
)
async def ask_confirmation(token: Annotated[str, Parameter(max_length=200)]) -> Response[str]:
    """Asks before it acts: mail scanners open links too, and must not use them up."""
    return _page(
        "Confirm your e-mail address",
        "<p>One click makes your account.</p><form method='post' action='/confirm'>"
        f"<input type='hidden' name='token' value='{html.escape(token, quote=True)}'>"
        "<button>Make my account</button></form>",
    )


@post(
    "/confirm",
    tags=["accounts"],
    summary="Make the account",
    media_type=MediaType.HTML,
    status_code=200,
    responses={
        **documented(_400="The form cannot be read", _413="The form is too long"),
        **{
            status: ResponseSpec(str, description=reason, media_type=MediaType.HTML, generate_examples=False)
            for status, reason in {
                409: "The address has an account by now",
                422: "The link is unknown, used or expired",
                503: "The database is away",
            }.items()
        },
    },
)
async def confirm(
    data: Annotated[dict[str, Any], Body(media_type=RequestEncodingType.URL_ENCODED)], state: State
) -> Response[str]:
    """The confirmation page's form. Works once per link."""
    token = data.get("token")
    try:
        user = await registration.confirm(state.database, state.keyring, token if isinstance(token, str) else "")
    except XimlerError as problem:
        return _page("That did not work", f"<p>{html.escape(problem.message)}</p>", status=status_of(problem))
    return _page("Welcome", f"<p>The account of <b>{html.escape(user.email)}</b> is ready: you can sign in.</p>")


def _page(title: str, content: str, *, status: int = 200) -> Response[str]:
    document = (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width,initial-scale=1'>"
        f"<title>{title} · Ximler</title><style>{_STYLE}</style></head>"
        f"<body><main><h1>{title}</h1>{content}</main></body></html>"
    )
    return Response(document, status_code=status, media_type=MediaType.HTML, headers=_HEADERS)
