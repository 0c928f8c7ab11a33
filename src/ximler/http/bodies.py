"""Bodies of REST requests: UTF-8, not compressed, a byte order mark allowed.

One place for all routes, because Litestar reads each body through its request.
"""

import codecs
import re
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any

import msgspec
from litestar import Request
from litestar.datastructures import FormMultiDict, UploadFile
from litestar.exceptions import ClientException, HTTPException
from litestar.handlers import HTTPRouteHandler
from litestar.openapi.spec import OpenAPIMediaType, OpenAPIType, Operation, RequestBody, Schema

from ximler.core import in_flight, strict_json
from ximler.core.errors import Invalid

__all__ = ["BodyRequest", "body_of", "file_of", "no_body", "problem_of_body", "require_utf8", "sent_file"]

_MAX_VALUES, _MAX_CONTAINERS = 1_000_000, 100_000
# msgspec's messages about an object's keys, which name the key but not its place.
_KEY = re.compile(r"Object (missing required|contains unknown) field `(.+)`")
_TYPE = re.compile(r"Expected `object`, got `(.+)`")
_KINDS = {"array": "an array", "str": "a string", "int": "a number", "float": "a number", "bool": "true or false"}


def body_of(description: str, **schemas: Schema) -> type[Operation]:
    """The `operation_class` of a route that reads its body itself: the media types by name, as
    `**{"application/json": Schema(…)}`.
    """

    @dataclass
    class WithBody(Operation):
        def __post_init__(self) -> None:
            content = {kind: OpenAPIMediaType(schema=schema) for kind, schema in schemas.items()}
            self.request_body = RequestBody(content=content, description=description, required=True)

    return WithBody


def file_of(description: str, kind: str = "*/*") -> type[Operation]:
    """The `operation_class` of a route that takes a file, as its body or as the first file of a form."""
    form = Schema(type=OpenAPIType.OBJECT, properties={"file": Schema(type=OpenAPIType.STRING)})
    return body_of(description, **{kind: Schema(), "multipart/form-data": form})


class UnsupportedMediaType(HTTPException):
    status_code = 415


class BodyRequest(Request[Any, Any, Any]):
    """A request that rejects unreadable bodies with 415 or 400."""

    _whole = False  # whether the body is kept until it has arrived

    async def stream(self) -> AsyncGenerator[bytes, None]:
        """The body as it arrives. Raises UnsupportedMediaType for a compressed one (RFC 9110, 8.4)."""
        encoding = self.headers.get("content-encoding", "identity").strip().lower()
        if encoding not in ("", "identity"):
            raise UnsupportedMediaType(
                f"A body with Content-Encoding {encoding[:40]!r} is not accepted: send it uncompressed",
                headers={"Accept-Encoding": "identity"},
            )
        received = counted = 0
        async for chunk in super().stream():
            received += len(chunk)
            if self._whole and received > max(counted, in_flight.SMALL):
                state = self.scope["state"]
                in_flight.hold(state, received - counted, known="leave" in state)
                counted = received
            yield chunk

    async def body(self) -> bytes:
        """The whole body. Text is returned without a byte order mark; raises UnsupportedMediaType unless it
        is UTF-8.
        """
        self._whole = True
        kind = self.content_type[0]
        if kind == "application/json" or kind.startswith("text/") or kind == "application/x-www-form-urlencoded":
            require_utf8(self)
            return (await super().body()).removeprefix(codecs.BOM_UTF8)
        return await super().body()

    async def json(self) -> Any:
        """The decoded body. Raises ClientException (400) for one that is not
        JSON in UTF-8, or has a key twice."""
        try:
            body = await self.body()
            str(body, "utf-8")  # the decoder does not validate ignored keys
            return strict_json.decode(body, values=_MAX_VALUES, containers=_MAX_CONTAINERS) if body else None
        except UnicodeDecodeError as error:
            raise ClientException(f"The body is not UTF-8: byte {error.start} is wrong") from error
        except strict_json.NotJson as problem:
            kind = self.content_type[0]
            if body.strip() and kind and not kind.endswith("json"):
                raise UnsupportedMediaType(f"The body is {kind[:100]}: {_send(self)}") from problem
            detail = problem.about("The body")
            raise ClientException(detail if body.strip() else f"{detail}: {_send(self)}") from problem

    async def form(self) -> FormMultiDict:
        """The form's fields. Raises ClientException (400) for one that cannot be read."""
        try:
            return await super().form()
        except UnicodeDecodeError as error:
            raise ClientException("The form is not UTF-8") from error
        except (LookupError, ValueError) as error:
            raise ClientException(f"The form cannot be read: {error}") from error


def no_body(request: Request[Any, Any, Any]) -> str:
    """The error of a request without the JSON body that its route takes."""
    return f"The request has no body: {_send(request)}"


def problem_of_body(request: Request[Any, Any, Any], place: str, message: str) -> tuple[str, str]:
    """The field and its error, of msgspec's `message` about the JSON value at `place` in the body."""
    if found := _KEY.fullmatch(message):
        name = f"{place}.{found[2]}" if place else found[2]
        return name, "is missing" if found[1] == "missing required" else "is not a field of this request"
    if not place and (found := _TYPE.fullmatch(message)):
        return "body", f"is {_KINDS.get(found[1], found[1])}: {_send(request)}"
    return place or "body", message


def _send(request: Request[Any, Any, Any]) -> str:
    """An imperative that names the object that the request's route takes."""
    handler: HTTPRouteHandler = request.scope["route_handler"]  # type: ignore[assignment]  # of HTTP requests
    fields = msgspec.structs.fields(handler.parsed_fn_signature.parameters["data"].annotation)
    required = " and ".join(f"`{each.encode_name}`" for each in fields if each.required)
    optional = " or ".join(f"`{each.encode_name}`" for each in fields if not each.required)
    parts = f" with {required}" if required else f", which may have {optional}"
    return f"send a JSON object{parts}, as application/json"


def require_utf8(request: Request[Any, Any, Any]) -> None:
    """Raises UnsupportedMediaType if the request declares another charset than UTF-8."""
    charset = request.content_type[1].get("charset", "utf-8").strip("\"'")
    if not _is_utf8(charset):
        raise UnsupportedMediaType(f"charset={charset[:40]} is not accepted: send UTF-8")


def _is_utf8(charset: str) -> bool:
    try:
        return codecs.lookup(charset).name in ("utf-8", "ascii")
    except (LookupError, ValueError):
        return False


async def sent_file(request: Request[Any, Any, Any], field: str) -> bytes:
    """The whole body, or of a form the first file in it.
    Raises Invalid, for `field`, if the form has none."""
    if request.content_type[0] != "multipart/form-data":
        return await request.body()
    for part in (await request.form()).values():
        if isinstance(part, UploadFile):
            return await part.read()
    raise Invalid.field(field, "is missing: the form has no file")
