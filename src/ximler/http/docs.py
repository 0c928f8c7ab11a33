"""The API's documentation page. Its script and style come from an installed package, not from a CDN."""

import asyncio
import gzip
import hashlib
from collections.abc import AsyncIterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from litestar import MediaType, Request, Response, Router, get
from litestar.exceptions import NotFoundException
from litestar.openapi.config import OpenAPIConfig
from litestar.openapi.plugins import JsonRenderPlugin, SwaggerRenderPlugin
from litestar.openapi.spec import Components, License, SecurityScheme
from litestar.params import FromPath
from litestar.response import Stream

from ximler import __version__
from ximler.http.conditional import encoding_of, matches
from ximler.http.pages import inline

__all__ = ["openapi", "routes"]

_PATH = "/docs/assets"
_ASSETS = {
    "swagger-ui.css": "text/css",
    "swagger-ui-bundle.js": "text/javascript",
    "swagger-ui-standalone-preset.js": "text/javascript",
}
_PART = 65_536
_POLICY = "img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"


async def _refuse_unknown(request: Request[Any, Any, Any]) -> None:
    """Litestar adds a catch-all page below the path: the only route there with a parameter."""
    if request.path_params:
        raise NotFoundException


async def _restrict(response: Response[Any]) -> Response[Any]:
    """Allow the page's own files, and the styles and scripts inside it by their hashes."""
    document = response.content.decode() if response.media_type == MediaType.HTML else ""
    response.headers["Content-Security-Policy"] = (
        f"default-src 'none'; script-src 'self' {inline('script', document)}; "
        f"style-src 'self' {inline('style', document)}; {_POLICY}"
    ).replace("'self' 'none'", "'self'")
    return response


def openapi() -> OpenAPIConfig:
    return OpenAPIConfig(
        title="Ximler",
        version=__version__,
        license=License(name="Apache License 2.0", identifier="Apache-2.0"),
        use_handler_docstrings=True,
        security=[{}],  # of operations that name none: no authentication
        description="REST beside GraphQL: `POST /graphql` is the main interface; its schema can be introspected.",
        openapi_router=Router(
            "/docs",
            route_handlers=[],
            include_in_schema=False,
            before_request=_refuse_unknown,
            after_request=_restrict,
        ),
        components=Components(
            security_schemes={
                "session": SecurityScheme(
                    type="http", scheme="bearer", description="A session's token, or its cookie."
                ),
                "api_key": SecurityScheme(type="http", scheme="bearer", description="An API key with the scope named."),
            }
        ),
        render_plugins=[
            SwaggerRenderPlugin(
                path="/",
                js_url=f"{_PATH}/swagger-ui-bundle.js",
                css_url=f"{_PATH}/swagger-ui.css",
                standalone_preset_js_url=f"{_PATH}/swagger-ui-standalone-preset.js",
                favicon="",
            ),
            JsonRenderPlugin(),
        ],
    )


class _Asset:
    def __init__(self, path: Path) -> None:
        self.text = path.read_bytes()
        self.compressed = gzip.compress(self.text, mtime=0)
        self.tag = hashlib.sha256(self.text).hexdigest()[:20]


@get(f"{_PATH}/{{name:str}}", opt={"api_calls": None}, include_in_schema=False)
async def assets(name: FromPath[str], request: Request[Any, Any, Any]) -> Response[bytes] | Stream:
    """The three files that the page loads, from a package that is not imported.

    Sent from memory, in parts: a reader that stalls holds one of them, and occupies no thread.
    """
    if name not in _ASSETS:
        raise NotFoundException
    asset = _read.get(name) or await _read_once(name)
    encoding = encoding_of(request.headers.get("accept-encoding", ""), ["gzip"])
    body = asset.compressed if encoding else asset.text
    tag = f'"{asset.tag}-{encoding}"' if encoding else f'"{asset.tag}"'
    headers = {"ETag": tag, "Cache-Control": "public, max-age=300", "Vary": "Accept-Encoding"}
    if matches(request.headers.get("if-none-match", ""), tag):
        return Response(b"", status_code=304, headers=headers)
    headers["Content-Length"] = str(len(body))
    if encoding:
        headers["Content-Encoding"] = encoding
    return Stream(_parts(body), media_type=_ASSETS[name], headers=headers)


async def _parts(body: bytes) -> AsyncIterator[bytes]:
    for at in range(0, len(body), _PART):
        yield body[at : at + _PART]


async def _read_once(name: str) -> _Asset:
    """A thousand first requests at once read and compress a file once."""
    if (reading := _reading.get(name)) is None:
        reading = _reading[name] = asyncio.create_task(asyncio.to_thread(_Asset, _static() / name))
        reading.add_done_callback(lambda _: _reading.pop(name))
    asset = _read[name] = await asyncio.shield(reading)
    return asset


_read: dict[str, _Asset] = {}
_reading: dict[str, asyncio.Task[_Asset]] = {}


@cache
def _static() -> Path:
    spec = find_spec("swagger_ui")
    if spec is None or spec.origin is None:
        raise RuntimeError("the package swagger-ui-py is not installed")
    return Path(spec.origin).parent / "static"


routes = (assets,)
