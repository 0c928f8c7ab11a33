"""Pages of lists: orders, and cursors that continue them with any values that other applications stored.

A cursor holds a document's time and `_id`. It cannot hold times outside the years 1 to 9999, or values that
are not times: the collection reads these again when a page continues after them, so that pages of every size
contain the same documents. BSON orders values by type first, and MongoDB's comparisons match values of one
type only.
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Generic, TypeVar, overload

import msgspec
from bson import Binary, Code, DatetimeMS, DBRef, Decimal128, MaxKey, MinKey, ObjectId, Regex, Timestamp

from ximler.core.clock import EPOCH
from ximler.core.errors import Invalid
from ximler.core.ids import Position, decode_cursor, decode_text, encode_cursor, encode_text

__all__ = ["LATEST", "MAX_PAGE", "Cursors", "Order", "Page", "T", "beyond", "check_size"]

T = TypeVar("T")
Filter = Mapping[str, Any]
_Place = tuple[Any, Any]
"""A document's time or text in the order of a page, and its `_id`, as they are stored."""

MAX_PAGE = 100
_EPOCH_NAIVE = EPOCH.replace(tzinfo=None)
_FIRST_MOMENT = datetime.min.replace(tzinfo=UTC)  # the driver clamps earlier times to it
_LAST_MOMENT = datetime(9999, 12, 31, 23, 59, 59, 999000, tzinfo=UTC)  # and later ones to this one
# The types of BSON, greatest first, and their Python classes.
_TYPES: list[tuple[str, tuple[type, ...]]] = [
    ("maxKey", (MaxKey,)), ("javascriptWithScope", ()), ("javascript", (Code,)), ("regex", (Regex,)),
    ("timestamp", (Timestamp,)), ("date", (datetime, DatetimeMS)), ("bool", (bool,)), ("objectId", (ObjectId,)),
    ("binData", (bytes, Binary)), ("object", (Mapping, DBRef)), ("string", (str,)), ("number", (int, float, Decimal128)),
    ("minKey", (MinKey,)),
]  # fmt: skip


class Order(msgspec.Struct, frozen=True):
    """The order of a page: the latest first, by the time `by` and `_id`,
    or with a collation by the text `by` and `_id`.

    Documents without the text are not in a page.
    A list with several orders gives the cursors of each order a `kind`.
    """

    by: str = "createdAt"
    kind: bytes = b"cursor"
    collation: Mapping[str, Any] | None = None

    @property
    def sort(self) -> list[tuple[str, int]]:
        direction = -1 if self.collation is None else 1
        return [(self.by, direction), ("_id", direction)]

    def is_inexact(self, position: Any) -> bool:
        """Whether the cursor of this position cannot hold the document's time."""
        return self.collation is None and position[0] in (_FIRST_MOMENT, _LAST_MOMENT)

    def after(self, where: Filter, position: Any, *, others: bool = False) -> Filter:
        """The filter of documents after a position, or of all; `others`: see `beyond`.

        An array would match by each of its elements, so documents with an array are left out.
        """
        if others:
            where = {"$and": [where, {self.by: {"$not": {"$type": "array"}}}]}
        if self.collation is None:
            return where if position is None else {"$and": [where, beyond(position, self.by, others=others)]}
        if position is None:
            return {"$and": [where, {self.by: {"$gte": ""}}]}
        text, oid = position
        return {"$and": [where, {"$or": [{self.by: {"$gt": text}}, {self.by: text, "_id": {"$gt": oid}}]}]}

    def cursor(self, place: _Place) -> str:
        if self.collation is None:
            return encode_cursor(_position(*place), self.kind)
        return encode_text(*place)

    def decoded(self, cursor: str | None) -> Any:
        """The position of a cursor. Raises Invalid if it is not of this order."""
        if cursor is None:
            return None
        return decode_cursor(cursor, kind=self.kind) if self.collation is None else decode_text(cursor)


LATEST = Order()


class Cursors(Sequence[str]):
    """The cursors of a page's documents, made when read, because most never are.

    `places` are the documents' places in the list, or values that `place` turns into them.
    """

    __slots__ = ("_order", "_place", "_places")

    def __init__(
        self, places: Sequence[Any], place: Callable[[Any], _Place] | None = None, order: Order = LATEST
    ) -> None:
        self._places = places
        self._place = place
        self._order = order

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> "Cursors": ...
    def __getitem__(self, index: int | slice) -> "str | Cursors":
        if isinstance(index, slice):
            return Cursors(self._places[index], self._place, self._order)
        place = self._places[index]
        return self._order.cursor(place if self._place is None else self._place(place))

    def __len__(self) -> int:
        return len(self._places)

    def __eq__(self, other: object) -> bool:
        return list(self) == list(other) if isinstance(other, Cursors | list) else NotImplemented

    __hash__ = None  # type: ignore[assignment]  # lists are unhashable


class Page(msgspec.Struct, Generic[T], frozen=True):
    """Part of a list, latest first. `cursors[i]` continues after `items[i]`."""

    items: list[T]
    cursors: Sequence[str]
    has_next: bool

    @property
    def end_cursor(self) -> str | None:
        return self.cursors[-1] if self.cursors else None


def check_size(first: int) -> None:
    """Raises Invalid for a page that is too small or too large."""
    if not 1 <= first <= MAX_PAGE:
        raise Invalid.field("first", f"{first} is not between 1 and {MAX_PAGE}")


def beyond(place: _Place, by: str, *, others: bool = False) -> dict[str, Any]:
    """The filter of documents after a place in the order of a page: times, and documents without one; with
    `others` also values of other types except arrays.
    """
    value, oid = place
    # A filter takes patterns and documents as conditions.
    same = {by: {"$eq": value} if isinstance(value, Regex | Mapping) else value, "_id": {"$lt": oid}}
    if value is None and not others:
        return same
    if not others:
        return {"$or": [{by: {"$lt": value}}, same, {by: None}]}
    lesser = [] if value is None or isinstance(value, Regex) else [{by: {"$lt": value}}]
    # NaN sorts below all numbers, but comparisons do not match it.
    least: list[Any] = [float("nan"), None]
    reached = 2 if value is None or isinstance(value, MinKey) else int(value != value)
    types = [name for name, _ in _TYPES[_rank(value) + 1 :]]
    return {"$or": [*lesser, same, {by: {"$in": least[reached:]}}, *([{by: {"$type": types}}] if types else [])]}


def _rank(value: Any) -> int:
    if value is None:
        return len(_TYPES) - 2  # only minKey is less
    for rank, (_, classes) in enumerate(_TYPES):
        if isinstance(value, classes):
            return rank
    return len(_TYPES) - 1


def _position(created: Any, oid: Any) -> Position:
    """A document's place as a cursor holds it. A value that is not a time makes it inexact."""
    if isinstance(created, datetime):
        return EPOCH + (created - _EPOCH_NAIVE), oid
    return None if created is None else _FIRST_MOMENT, oid
