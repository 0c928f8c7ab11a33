"""The mailbox of development: e-mails that would have been sent, to read and to follow their links.

Its links open accounts. It exists in development without a mail server only, and only for this machine: not
for other addresses, not through a proxy, not under another name (which a page elsewhere could let point here,
DNS rebinding), and not for scripts of other origins, whatever XIMLER_CORS_ORIGINS allows.
"""

import asyncio
import re
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

from litestar import MediaType, Response, get
from litestar.connection import ASGIConnection
from litestar.datastructures import State
from litestar.exceptions import NotFoundException
from litestar.handlers import BaseRouteHandler
from litestar.params import FromPath, QueryParameter

from ximler.core.networks import is_loopback
from ximler.core.settings import Settings
from ximler.http.pages import page
from ximler.notifications import mailbox

__all__ = ["PATH", "folder_of", "routes"]

PATH = "/dev/mail"
_FOREIGN = ("origin", "x-forwarded-for", "x-forwarded-host", "x-real-ip", "forwarded", "via")
_REFRESH_S = 3


def folder_of(settings: Settings) -> Path | None:
    """The folder of the mailbox; None where there is none."""
    local = settings.public_url is None or is_loopback(urlsplit(settings.public_url).hostname)
    if not settings.development or settings.smtp_url or not local:
        return None
    return settings.data_path / "mail"


async def _only_here(connection: ASGIConnection[Any, Any, Any, Any], _: BaseRouteHandler) -> None:
    """Raises NotFound for every request from elsewhere."""
    client = connection.scope.get("client")
    host = urlsplit(f"//{connection.headers.get('host', '')}").hostname
    here = client and is_loopback(client[0]) and is_loopback(host)
    site = connection.headers.get("sec-fetch-site")
    foreign = any(name in connection.headers for name in _FOREIGN) or (
        site == "cross-site" and connection.headers.get("sec-fetch-mode") != "navigate"
    )
    if connection.app.state.mailbox is None or not here or foreign:
        raise NotFoundException


_OPTIONS: dict[str, Any] = {
    "guards": [_only_here],
    "include_in_schema": False,
    "opt": {"api_calls": None, "quiet": True},
}
_To = Annotated[str | None, QueryParameter(max_length=320)]


@get(PATH, media_type=MediaType.HTML, **_OPTIONS)
async def show_list(state: State, to: _To = None) -> Response[str]:
    letters = await asyncio.to_thread(mailbox.newest, state.mailbox, to=to)
    answer = page("mailbox.html", "Mailbox", letters=letters, folder=state.mailbox, to=to)
    answer.headers["Refresh"] = str(_REFRESH_S)
    return answer


@get(f"{PATH}.json", **_OPTIONS)
async def list_as_json(state: State, to: _To = None) -> Response[dict[str, Any]]:
    letters = await asyncio.to_thread(mailbox.newest, state.mailbox, to=to)
    return Response({"items": letters, "next": None}, headers={"Cache-Control": "no-store"})


@get(f"{PATH}/{{name:str}}", media_type=MediaType.HTML, **_OPTIONS)
async def show(name: FromPath[str], state: State) -> Response[str]:
    letter = await asyncio.to_thread(mailbox.one, state.mailbox, name)
    if letter is None:
        raise NotFoundException
    # A frame that may only open links in other tabs; its document inherits the policy of the page.
    html = letter.html.replace("<head>", '<head><base target="_blank">', 1)
    answer = page("letter.html", letter.subject, letter=letter, html=html)
    policy = answer.headers["Content-Security-Policy"]
    # E-mails have styles in attributes, which a policy cannot name.
    # Only here, on the developer's own machine.
    answer.headers["Content-Security-Policy"] = re.sub("style-src [^;]+", "style-src 'unsafe-inline'", policy)
    return answer


routes = (show_list, list_as_json, show)
