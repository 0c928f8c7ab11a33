"""Everything that a stranger can reach over REST, taken from the application's own routes."""

from typing import Any

import msgspec
from litestar.routes import HTTPRoute
from tests.serving import Client

__all__ = ["BODIES", "HEADERS", "OBJECTS", "Route", "routes_of"]


class Route(msgspec.Struct, frozen=True):
    method: str
    path: str  # a template: /v1/projects/{project}
    secured: bool

    @property
    def parameters(self) -> set[str]:
        return {part[1:-1] for part in self.path.split("/") if part.startswith("{")}

    def fill(self, values: dict[str, str]) -> str:
        return "/".join(values[part[1:-1]] if part.startswith("{") else part for part in self.path.split("/"))

    def __str__(self) -> str:
        return f"{self.method} {self.path}"


def routes_of(client: Client) -> list[Route]:
    """All but `/graphql`, whose fields `tests/graphql/test_access.py` takes from the schema."""
    found = []
    for route in client.app._app._litestar.routes:  # type: ignore[attr-defined]  # the application inside its layers
        if isinstance(route, HTTPRoute):
            for handler in route.route_handlers:
                secured = "scope" in handler.opt  # set by `signed_in`
                found += [
                    Route(method, route.path_format, secured)
                    for method in sorted(handler.http_methods)
                    if method != "OPTIONS"
                ]
    return found


# What a path's parameter names: an object of a user, or something public. A new parameter needs an entry.
OBJECTS = {"project", "asset", "upload", "version", "invoice", "file", "link"}
PUBLIC = {
    "picture": "0" * 24,
    "module": "ximler.js",
    "name": "nothing",
    "path": "nothing",
    "session": "cs_nothing",
}

JSON = "application/json"
# Bodies of about 1 MB that are expensive to read for some parser or other.
BODIES: dict[str, tuple[str, bytes]] = {
    "nested arrays": (JSON, b"[" * 900_000),
    "nested objects": (JSON, b'{"a":' * 180_000),
    "empty strings": (JSON, b'{"a":[' + b'"",' * 300_000 + b'""]}'),
    "empty objects": (JSON, b"[" + b"{}," * 300_000 + b"{}]"),
    "integers": (JSON, b"[" + b"1," * 450_000 + b"1]"),
    "one long integer": (JSON, b'{"a":' + b"1" * 900_000 + b"}"),
    "floats": (JSON, b"[" + b"1e308," * 150_000 + b"1]"),
    "equal keys": (JSON, b"{" + b'"a":1,' * 150_000 + b'"a":1}'),
    "many keys": (JSON, b"{" + b",".join(b'"k%d":1' % n for n in range(80_000)) + b"}"),
    "escapes": (JSON, b'{"a":"' + b"\\u00e9" * 150_000 + b'"}'),
    "a long string": (JSON, b'{"name":"' + b"a" * 900_000 + b'"}'),
    "operations": (
        "application/json-patch+json",
        b"[" + b",".join([b'{"op":"add","path":"/a/-","value":1}'] * 24_000) + b"]",
    ),
    "a long pointer": ("application/json-patch+json", b'[{"op":"test","path":"' + b"/a" * 450_000 + b'","value":1}]'),
    "lines": ("application/x-ndjson", b"{}\n" * 300_000),
    "empty lines": ("application/x-ndjson", b"\n" * 900_000),
    "form fields": ("application/x-www-form-urlencoded", b"a=1&" * 225_000),
    "percent": ("application/x-www-form-urlencoded", b"a=" + b"%41" * 300_000),
    "parts": (
        "multipart/form-data; boundary=b",
        b'--b\r\nContent-Disposition: form-data; name="a"\r\n\r\nx\r\n' * 16_000,
    ),
    "dashes": ("multipart/form-data; boundary=b", b"--b\r\n" + b"\r\n--" * 225_000),
    "headers of a part": ("multipart/form-data; boundary=b", b"--b\r\n" + b"a: b\r\n" * 150_000),
}
# Values of 60 kB, which the server accepts, of headers that some layer parses.
HEADERS: dict[str, tuple[str, bytes]] = {
    "tags": ("If-None-Match", b'"a", ' * 12_000),
    "half tags": ("If-Match", b'W/"' * 20_000),
    "ranges": ("Range", b"bytes=" + b"0-1," * 15_000),
    "types": ("Accept", b"a/b;q=0.1," * 6_000),
    "encodings": ("Accept-Encoding", b"gzip;q=0.1, " * 5_000),
    "parameters": ("Content-Type", b"application/json" + b"; a=b" * 10_000),
    "proxies": ("X-Forwarded-For", b"[::1]:1, " * 6_500),
    "hops": ("Forwarded", b'for="[::1]", ' * 4_500),
    "cookies": ("Cookie", b"a=b; " * 12_000),
    "a cookie": ("Cookie", b'a="' + b"\\" * 59_000),
    "a token": ("Authorization", b"Bearer xim_" + b"a" * 59_000),
    "signatures": ("Stripe-Signature", b"t=1," + b"v1=00," * 10_000),
    "more signatures": ("Sandbox-Signature", b"t=1," + b"v1=00," * 10_000),
    "metadata": ("Upload-Metadata", b"a YQ==," * 8_500),
    "a checksum": ("Upload-Checksum", b"sha1 " + b"A" * 59_000),
    "a key": ("Idempotency-Key", b"a" * 59_000),
    "an origin": ("Origin", b"http://" + b"a." * 29_000),
    "an event": ("Last-Event-ID", b"1" * 59_000),
}


def values(**objects: str) -> dict[str, str]:
    """For `Route.fill`."""
    nothing: dict[str, Any] = dict.fromkeys(OBJECTS, "0" * 24) | PUBLIC
    return nothing | objects
