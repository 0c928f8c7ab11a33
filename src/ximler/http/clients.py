"""The client for editors and its adapters, ES modules that pages import from this server."""

from pathlib import Path
from typing import Annotated

from litestar import Response, get
from litestar.exceptions import NotFoundException
from litestar.params import PathParameter

__all__ = ["routes"]

_FOLDER = Path(__file__).with_name("clients")
_MODULES = {path.name: path.read_bytes() for path in _FOLDER.glob("*.js")}


@get("/clients/{module:str}", include_in_schema=False, opt={"api_calls": 0})
async def client(module: Annotated[str, PathParameter(max_length=100)]) -> Response[bytes]:
    if (text := _MODULES.get(module)) is None:
        raise NotFoundException
    return Response(
        text,
        media_type="text/javascript",
        headers={"Cache-Control": "public, max-age=300", "Access-Control-Allow-Origin": "*"},
    )


routes = (client,)
