"""Parsing of IP addresses and networks from clients, proxies and operators.

IPv4-mapped addresses (`::ffff:192.0.2.1`, RFC 4291, 2.5.5.2), as written by dual-stack sockets and some
proxies, equal their IPv4 address in throttles, allow-lists and lists of proxies. Addresses with a zone
(`fe80::1%eth0`) are rejected, because a zone is meaningful on its own host only (RFC 6874).
"""

import ipaddress
import re
from collections.abc import Iterable, Iterator

__all__ = [
    "Address",
    "Network",
    "around",
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
# With a port, which RFC 7239 also allows to be obfuscated: 192.0.2.1:80, [2001:db8::1]:_p, 2001:db8::1
_NODE = re.compile(r"(?:\[([^\[\]]+)\]|([^\[\]:]+))(?::(?:\d{0,5}|_[\w.-]+))?|([^\[\]]+)")
_ESCAPED = re.compile(r"\\(.)")
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


def around(address: str | None, *, ipv4: int, ipv6: int) -> str:
    """The network of the address with so many bits. Other texts are returned unchanged."""
    parsed = parse_address((address or "").partition("%")[0])
    if parsed is None:
        return address or ""
    bits = ipv4 if isinstance(parsed, ipaddress.IPv4Address) else ipv6
    return str(ipaddress.ip_network((parsed, bits), strict=False))


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
    elements = (each.strip('"').strip() for each in _split_last(x_forwarded_for, ",") if each)
    if not x_forwarded_for.strip(", \t"):
        elements = (_for(each) for each in _split_last(forwarded, ",") if each)
    for element in elements:
        node = _NODE.fullmatch(element)
        parsed = parse_address(node[1] or node[2] or node[3]) if node else None
        yield None if parsed is None else str(parsed)


def _for(element: str) -> str:
    """The value of `for=` in `for="[2001:db8::1]:4711";proto=https`;
    empty if it is missing or given twice."""
    found = ""
    for parameter in _split_last(element, ";"):
        name, _, value = parameter.partition("=")
        if name.strip().lower() == "for":
            if found:
                return ""
            value = value.strip()
            found = _ESCAPED.sub(r"\1", value[1:-1]) if value[:1] == value[-1:] == '"' else value
    return found


def _split_last(header: str, separator: str) -> Iterator[str]:
    """The parts of a header, the last one first, each without surrounding whitespace.

    Separators in quoted strings are not separators: a proxy quotes the `host` that its client sent. Read from
    the end, because a client may begin a quoted string in its own part of the header and never end it.
    """
    if '"' not in header:
        yield from (part.strip() for part in reversed(header.split(separator)))
        return
    is_quoted, end = False, len(header)
    for place in range(end - 1, -1, -1):
        if header[place] == '"':
            start = place
            while start and header[start - 1] == "\\":
                start -= 1
            is_quoted ^= (place - start) % 2 == 0
        elif header[place] == separator and not is_quoted:
            yield header[place + 1 : end].strip()
            end = place
    yield header[:end].strip()
