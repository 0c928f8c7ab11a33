"""The session's cookie in browsers: scripts cannot read it, and other sites cannot use it.

Browsers bind `__Host-ximler` to exactly this host over https. Plain http, for local use, allows neither the
prefix nor `Secure`, so the cookie has another name there. A mutating request with the cookie must prove that
a page of ours sent it (OWASP, CSRF Prevention: Fetch Metadata, else Origin, else it is rejected), because
`SameSite=Lax` alone does not stop sibling domains or old browsers.
"""

from collections.abc import Iterable, Mapping
from urllib.parse import urlsplit

from ximler.core.errors import Forbidden, Invalid
from ximler.core.networks import is_loopback
from ximler.core.settings import Settings

__all__ = ["Cookies", "ForeignOrigin"]

_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
_FORMS = (b"application/x-www-form-urlencoded", b"multipart/form-data", b"text/plain")


class ForeignOrigin(Forbidden):
    code = "FOREIGN_ORIGIN"


class Cookies:
    """Name, attributes and checks of the session's cookie, by the settings."""

    def __init__(self, settings: Settings) -> None:
        url = urlsplit(settings.base_url)
        self._secure = url.scheme == "https"
        self._local = is_loopback(url.hostname or "")
        self._origin = f"{url.scheme}://{url.netloc}".lower().encode()
        self.name = "__Host-ximler" if self._secure else "ximler"

    def token(self, headers: Iterable[tuple[bytes, bytes]]) -> str | None:
        """The session's token, if the request has one."""
        for header, value in headers:
            if header == b"cookie":
                for part in value.decode("latin-1").split(";"):
                    name, equals, token = part.strip().partition("=")
                    if equals and name == self.name:
                        return token
        return None

    def give(self, token: str, *, seconds: int) -> tuple[bytes, bytes]:
        """The header that sets the cookie. Raises Invalid if it would be sent unencrypted."""
        if not self._secure and not self._local:
            raise Invalid(
                "Cookies need https: set XIMLER_PUBLIC_URL to the https:// address, or send the token as a header"
            )
        secure = "; Secure" if self._secure else ""
        cookie = f"{self.name}={token}; Path=/; Max-Age={seconds}; HttpOnly; SameSite=Lax{secure}"
        return b"set-cookie", cookie.encode("latin-1")

    def take(self) -> tuple[bytes, bytes]:
        """The header that deletes the cookie."""
        secure = "; Secure" if self._secure else ""
        return b"set-cookie", f"{self.name}=; Path=/; Max-Age=0; HttpOnly; SameSite=Lax{secure}".encode()

    def require_own_page(self, method: str, headers: Mapping[bytes, bytes]) -> None:
        """Reject cross-site requests with the cookie. Raises ForeignOrigin."""
        if method in _SAFE:
            return
        site = headers.get(b"sec-fetch-site")
        if site is not None:
            if site != b"same-origin":
                raise ForeignOrigin("This came from another site: use the API with a token instead of a cookie")
            return
        origin = headers.get(b"origin", b"").lower()
        scheme, _, host = origin.partition(b"://")
        ours = origin == self._origin or (
            scheme == b"http" and self._local and host == headers.get(b"host", b"").lower()
        )
        if not origin or not ours:
            raise ForeignOrigin(
                "With a cookie, a change needs the header Origin or Sec-Fetch-Site of a page of ours: "
                "use 'Authorization: Bearer <token>' outside browsers"
            )
        if headers.get(b"content-type", b"").split(b";")[0].strip().lower() in _FORMS:
            raise ForeignOrigin("With a cookie, send application/json: a form can be sent by any site")
