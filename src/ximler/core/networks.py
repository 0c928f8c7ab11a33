"""Parsing of IP addresses and networks from clients, proxies and operators.

IPv4-mapped addresses (`::ffff:192.0.2.1`, RFC 4291, 2.5.5.2), as written by dual-stack sockets and some
proxies, equal their IPv4 address in throttles, allow-lists and lists of proxies. Addresses with a zone
(`fe80::1%eth0`) are rejected, because a zone is meaningful on its own host only (RFC 6874).
"""

import ipaddress
from collections.abc import Iterable, Iterator

__all__ = [
    "Address",
    "Network",
    "contains",
    "forwarded_for",
    "is_loopback",
    "parse_address",
    "parse_network",
    "subscriber",
]

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_MAPPED = ipaddress.IPv6Network("::ffff:0:0/96")
_CUSTOMER = 64  # bits of the network that an IPv6 customer has at least (RFC 6177)


def parse_address(text: str | None) -> Address | None:
    """The address, or None if the text is not one."""
    if not text or "%" in text:
        return None
    try:
        parsed = ipaddress.ip_address(text)
    except ValueError:
        return None
    return getattr(parsed, "ipv4_mapped", None) or parsed


def is_loopback(host: str | None) -> bool:
    """Whether an address or a name is this machine's own (RFC 6761, 6.3: `localhost` and names below it)."""
    address = parse_address(host)
    return address.is_loopback if address else host == "localhost" or (host or "").endswith(".localhost")


def parse_network(text: str, *, strict: bool = True) -> Network:
    """An address or a network. Raises ValueError, with `strict` also for host bits that are set."""
    if "%" in text:
        raise ValueError(f"{text!r} has a zone: remove the % and the text after it")
    network = ipaddress.ip_network(text.strip(), strict=strict)
    if isinstance(network, ipaddress.IPv6Network) and network.subnet_of(_MAPPED):
        return ipaddress.IPv4Network((int(network.network_address) & 0xFFFFFFFF, network.prefixlen - 96))
    return network


def contains(networks: Iterable[Network], address: str | None) -> bool:
    """Whether the address is in one of the networks; False if it is not an address."""
    parsed = parse_address(address)
    return parsed is not None and any(parsed in network for network in networks)


def subscriber(address: str | None) -> str:
    """The network that counts as one client: an IPv4 address, or the /64 of an IPv6 customer.

    Other texts are returned unchanged. The zone of a link-local peer is ignored.
    """
    parsed = parse_address((address or "").partition("%")[0])
    if parsed is None:
        return address or ""
    if isinstance(parsed, ipaddress.IPv4Address):
        return str(parsed)
    return str(ipaddress.ip_network((parsed, _CUSTOMER), strict=False))


def forwarded_for(x_forwarded_for: str, forwarded: str) -> Iterator[str | None]:
    """The addresses recorded by proxies, nearest first; None for malformed ones.

    `X-Forwarded-For` if it has elements, otherwise the `for=` of `Forwarded` (RFC 7239). Ports, brackets and
    quotes are removed, empty elements (RFC 9110, 5.6.1) skipped.
    """
    elements = [each for each in _elements(x_forwarded_for) if each]
    if not elements:
        elements = [_for(each) for each in _elements(forwarded) if each]
    for element in reversed(elements):
        parsed = parse_address(_host(element))
        yield None if parsed is None else str(parsed)


def _elements(header: str) -> Iterator[str]:
    return (element.strip() for element in header.split(","))


def _for(element: str) -> str:
    """The value of `for=` in `for="[2001:db8::1]:4711";proto=https`; empty if it is missing."""
    for parameter in element.split(";"):
        name, _, value = parameter.partition("=")
        if name.strip().lower() == "for":
            return value.strip()
    return ""


def _host(element: str) -> str:
    """Without quotes, brackets and port: `"[2001:db8::1]:4711"` is 2001:db8::1."""
    element = element.strip('"').strip()
    if element.startswith("["):
        return element[1:].partition("]")[0]
    host, colon, port = element.partition(":")
    return host if colon and ":" not in port else element
