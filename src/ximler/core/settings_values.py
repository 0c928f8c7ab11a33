"""Values of settings that need more than their type: origins and mailboxes. Pure."""

import re
from collections.abc import Iterable
from urllib.parse import urlsplit

__all__ = ["is_mailbox", "origin_of", "pattern_of"]

_NO_HOST = re.compile(r"[\s\0-)+,/;<=>?@\\^`{|}~\x7f]")
_DEFAULT_PORTS = {"http": 80, "https": 443}


def origin_of(url: str) -> str | None:
    """Scheme, host and port as browsers write an origin (RFC 6454, 6.2); None if the URL has more or less."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return None
    more = parts.path.strip("/") or parts.query or parts.fragment or parts.username is not None
    if parts.scheme not in _DEFAULT_PORTS or more or not parts.hostname or _NO_HOST.search(parts.hostname):
        return None
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    if not host.isascii():
        import idna  # here, because it takes 10 ms of every command's start

        try:
            host = idna.encode(host, uts46=True).decode()  # as browsers send it in Origin and Host
        except idna.IDNAError:
            return None
    return f"{parts.scheme}://{host}" + ("" if port in (None, _DEFAULT_PORTS[parts.scheme]) else f":{port}")


def pattern_of(origins: Iterable[str]) -> str:
    """A regular expression of the origins listed.
    `https://*.example.com` lists all hosts below `example.com`."""
    return "|".join(re.escape(each).replace(r"\*", r"[a-z0-9-]+(?:\.[a-z0-9-]+)*") for each in origins if each != "*")


def is_mailbox(text: str) -> bool:
    """Whether it is one address, with or without a name (RFC 5322, 3.4)."""
    if not text.isprintable():
        return False
    from email.policy import default  # here, because it takes 20 ms of every command's start

    try:
        parsed = default.header_factory("From", text)
    except (IndexError, ValueError):  # as the library fails on some that are none
        return False
    if parsed.defects or len(parsed.addresses) != 1 or parsed.groups[0].display_name is not None:
        return False
    address = parsed.addresses[0]
    return bool(address.domain) and address.addr_spec in text  # without spaces or comments in it
