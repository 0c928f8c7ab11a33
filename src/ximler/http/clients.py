"""The client for editors, an ES module that pages import from this server."""

from pathlib import Path

from litestar import Response, get

__all__ = ["routes"]

_MODULE = Path(__file__).with_name("clients") / "ximler.js"


@get("/clients/ximler.js", include_in_schema=False, opt={"api_calls": 0})
async def client() -> Response[bytes]:
    return Response(
        _MODULE.read_bytes(),
        media_type="text/javascript",
        headers={"Cache-Control": "public, max-age=300", "Access-Control-Allow-Origin": "*"},
    )


routes = (client,)
