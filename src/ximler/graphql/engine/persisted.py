"""Persisted queries by hash: Apollo's automatic persisted queries, and trusted documents.

A client sends `extensions.persistedQuery = {"version": 1, "sha256Hash": …}` instead of the text. If the hash
is unknown (PERSISTED_QUERY_NOT_FOUND) it sends both, and this process caches the text if it is valid. The
cache is bounded in number and in characters. See
https://www.apollographql.com/docs/apollo-server/performance/apq.

With trusted documents only the listed texts are executed, referenced by id or sent as text; none are added.
The list is a file: Apollo's manifest (`{"operations": [{"id": …, "body": …}]}`) or Relay's (`{id: text}`).
"""

import hashlib
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from ximler.graphql.engine.errors import RequestRefused
from ximler.graphql.engine.limits import Limits

__all__ = ["PersistedQueries", "read_trusted"]


class _Named(msgspec.Struct):
    version: int
    sha256_hash: str = msgspec.field(name="sha256Hash")


class _Operation(msgspec.Struct):
    id: str
    body: str


class _Manifest(msgspec.Struct):
    operations: list[_Operation]


def read_trusted(path: Path) -> dict[str, str]:
    """Read a file of trusted documents: texts by id. Raises OSError, ValueError."""
    data = path.read_bytes()
    try:
        return {each.id: each.body for each in msgspec.json.decode(data, type=_Manifest).operations}
    except msgspec.ValidationError:
        return msgspec.json.decode(data, type=dict[str, str])


class PersistedQueries:
    """The query texts of one process by hash or id. With `trusted`, only those are executed."""

    def __init__(self, limits: Limits, trusted: Mapping[str, str] | None = None) -> None:
        self._limits = limits
        self._trusted = trusted
        self._texts = frozenset((trusted or {}).values())
        self._kept: OrderedDict[str, str] = OrderedDict()
        self._kept_text = 0

    def find(self, query: str | None, extensions: Mapping[str, Any] | None) -> str | None:
        """The query text of a request; None if it has none. Raises RequestRefused."""
        given = (extensions or {}).get("persistedQuery")
        name = None
        if given is not None:
            try:
                named = msgspec.convert(given, _Named)
            except msgspec.ValidationError as error:
                raise _refused("PERSISTED_QUERY_INVALID", f"extensions.persistedQuery: {error}") from error
            if named.version != 1:
                raise _refused("PERSISTED_QUERY_INVALID", "Persisted queries have version 1")
            name = named.sha256_hash
        if self._trusted is not None:
            found = query if query is not None else self._trusted.get(name) if name is not None else None
            if found not in self._texts:
                raise _refused("QUERY_NOT_TRUSTED", "This server executes the queries of its list only")
            return found
        if query is None and name is not None:
            found = self._kept.get(name)
            if found is None:
                raise _refused("PERSISTED_QUERY_NOT_FOUND", "PersistedQueryNotFound")
            self._kept.move_to_end(name)
            return found
        if query is not None and name is not None and _hash(query) != name:
            raise _refused("PERSISTED_QUERY_INVALID", "provided sha does not match query")
        return query

    def keep(self, query: str, extensions: Mapping[str, Any] | None) -> None:
        """Cache a valid text by its hash, if the request contained both."""
        if not extensions or "persistedQuery" not in extensions or self._trusted is not None:
            return
        limits, name = self._limits, extensions["persistedQuery"]["sha256Hash"]
        if name in self._kept or len(query) > limits.cached_text_each:
            return
        self._kept[name] = query
        self._kept_text += len(query)
        while len(self._kept) > limits.cached_documents or self._kept_text > limits.cached_text:
            _, oldest = self._kept.popitem(last=False)
            self._kept_text -= len(oldest)


def _hash(query: str) -> str:
    return hashlib.sha256(query.encode("utf-8", "surrogatepass")).hexdigest()


def _refused(code: str, message: str) -> RequestRefused:
    return RequestRefused([{"message": message, "extensions": {"code": code}}])
