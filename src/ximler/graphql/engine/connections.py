"""Relay connections over a domain's pages: `edges`, `nodes`, `pageInfo`, and page sizes.

SDL declares each `ProjectConnection { edges: [ProjectEdge!]! nodes: [Project!]! pageInfo: PageInfo! }`; a
resolver returns `Connection(page)`. Pagination is forward only, by keyset: `after` is the domain's opaque
cursor, which the domain validates.
"""

from collections.abc import Sequence
from typing import Generic, Protocol, TypeVar

import msgspec

from ximler.core.errors import Invalid

__all__ = ["DEFAULT_SIZE", "MAX_SIZE", "SDL", "Connection", "Edge", "Page", "PageInfo", "page_size"]

DEFAULT_SIZE = 20
MAX_SIZE = 100

SDL = """
"Pagination state of a connection (https://relay.dev/graphql/connections.htm)."
type PageInfo {
  "Whether there are more items: request them with `after: endCursor`."
  hasNextPage: Boolean!
  "Always false: pagination is forward only."
  hasPreviousPage: Boolean!
  startCursor: String
  endCursor: String
}
"""

D = TypeVar("D")
D_co = TypeVar("D_co", covariant=True)


class Page(Protocol[D_co]):
    """A domain's page, with one cursor per item."""

    @property
    def items(self) -> Sequence[D_co]: ...
    @property
    def cursors(self) -> Sequence[str]: ...
    @property
    def has_next(self) -> bool: ...


class Edge(msgspec.Struct, Generic[D], frozen=True, gc=False):
    node: D
    cursor: str


class PageInfo(msgspec.Struct, Generic[D], frozen=True):
    """A page's place in its list. Cursors that a query does not select are not computed."""

    page: Page[D]

    @property
    def has_next_page(self) -> bool:
        return self.page.has_next

    @property
    def has_previous_page(self) -> bool:
        return False

    @property
    def start_cursor(self) -> str | None:
        return self.page.cursors[0] if self.page.cursors else None

    @property
    def end_cursor(self) -> str | None:
        return self.page.cursors[-1] if self.page.cursors else None


class Connection(msgspec.Struct, Generic[D], frozen=True):
    """A page as a Relay connection. Fields that a query does not select are not computed."""

    page: Page[D]

    @property
    def nodes(self) -> Sequence[D]:
        return self.page.items

    @property
    def edges(self) -> list[Edge[D]]:
        return [Edge(node, cursor) for node, cursor in zip(self.page.items, self.page.cursors, strict=True)]

    @property
    def page_info(self) -> PageInfo[D]:
        return PageInfo(self.page)


def page_size(first: int | None) -> int:
    """The page size: `first`, or 20 if it is absent or null. Raises Invalid outside 1 to 100."""
    if first is None:
        return DEFAULT_SIZE
    if not 1 <= first <= MAX_SIZE:
        raise Invalid.field("first", f"must be between 1 and {MAX_SIZE}, got {first}")
    return first
