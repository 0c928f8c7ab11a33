"""The client for editors and its adapters, ES modules that pages import from this server."""

import gzip
from pathlib import Path
from typing import Annotated, Any

from litestar import Request, Response, get
from litestar.exceptions import NotFoundException
from litestar.params import PathParameter

from ximler.http.conditional import encoding_of

__all__ = ["routes"]

_FOLDER = Path(__file__).with_name("clients")
_MODULES = {path.name: path.read_bytes() for path in _FOLDER.glob("*.js")}
_COMPRESSED = {name: gzip.compress(text, mtime=0) for name, text in _MODULES.items()}


@get("/clients/{module:str}", include_in_schema=False, opt={"api_calls": 0})
async def client(
    module: Annotated[str, PathParameter(max_length=100)], request: Request[Any, Any, Any]
) -> Response[bytes]:
    if (text := _MODULES.get(module)) is None:
        raise NotFoundException
    headers = {"Cache-Control": "public, max-age=300", "Access-Control-Allow-Origin": "*", "Vary": "Accept-Encoding"}
    if encoding_of(request.headers.get("accept-encoding", ""), ["gzip"]):
        text = _COMPRESSED[module]
        headers["Content-Encoding"] = "gzip"
    return Response(text, media_type="text/javascript", headers=headers)


routes = (client,)
