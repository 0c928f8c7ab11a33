"""Range requests (RFC 9110, 14), of one range, and file names in headers (RFC 6266, RFC 8187)."""

import re
from urllib.parse import quote, unquote

__all__ = ["Unsatisfiable", "byte_range", "disposition", "name_in"]

_RANGE = re.compile(r"\s*+bytes\s*+=\s*+(\d{0,19})\s*+-\s*+(\d{0,19})\s*+", re.ASCII | re.IGNORECASE)
_ATTRIBUTE = "!#$&+-.^_`|~"  # characters that an extended value has as they are, beside letters and digits
_EXTENDED = re.compile(r";\s*filename\*\s*=\s*utf-8'[\w-]*'([^\s;]+)", re.ASCII | re.IGNORECASE)
_QUOTED = re.compile(r';\s*filename\s*=\s*(?:"((?:[^"\\]|\\.)*+)"|([^\s;"]+))', re.IGNORECASE)


class Unsatisfiable(Exception):
    """The range starts after the last byte: answered with 416."""


def byte_range(header: str | None, size: int) -> tuple[int, int] | None:
    """The start and the end, not included, of a single range; None means everything.

    Other units, several ranges and malformed ones are ignored, as RFC 9110 permits,
    and every range of an empty file.
    """
    found = _RANGE.fullmatch(header or "")
    if found is None or not size:
        return None
    first, last = found[1], found[2]
    if not first:
        if not last:
            return None
        if not int(last):
            raise Unsatisfiable
        return max(size - int(last), 0), size
    if last and int(last) < int(first):
        return None
    if int(first) >= size:
        raise Unsatisfiable
    return int(first), min(int(last) + 1, size) if last else size


def disposition(kind: str, name: str) -> str:
    """The value of `Content-Disposition` for a file of any name,
    in ASCII for old clients and as it is for others."""
    plain = "".join(c if c.isascii() and c.isprintable() and c not in '"\\%' else "_" for c in name)
    extended = quote(name, safe=_ATTRIBUTE, errors="replace")
    return f"{kind}; filename=\"{plain}\"; filename*=UTF-8''{extended}"


def name_in(header: str) -> str | None:
    """The file's name in a `Content-Disposition`: the extended one is preferred."""
    if found := _EXTENDED.search(header):
        return unquote(found[1], errors="replace")
    if found := _QUOTED.search(header):
        name = found[2] if found[1] is None else re.sub(r"\\(.)", r"\1", found[1])
        return name.encode("latin-1", "replace").decode("utf-8", "replace")
    return None
