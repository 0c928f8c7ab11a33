"""Stored documents on their way into an answer:
Structs for all readers, and dicts for one that copies their fields."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar, overload

__all__ = ["Key", "Rows"]

T = TypeVar("T")


class Key(NamedTuple):
    """Where a Struct's attribute is in a dict.
    An optional one has its default if the dict has no value, or null."""

    name: str
    optional: bool
    default: Any


class Rows(Sequence[T]):
    """A list of Structs, made when they are first read. `raws` are the dicts that they are made of.

    The values in `raws` were checked: each is of its attribute's class, or absent. Times are naive, in UTC.
    """

    __slots__ = ("_decode", "_made", "keys", "raws")

    def __init__(
        self, raws: list[dict[str, Any]], decode: Callable[[dict[str, Any]], T], keys: Mapping[str, Key]
    ) -> None:
        self.raws = raws
        self.keys = keys
        self._decode = decode
        self._made: list[T] | None = None

    def _all(self) -> list[T]:
        if self._made is None:
            self._made = [self._decode(dict(raw)) for raw in self.raws]
        return self._made

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> list[T]: ...
    def __getitem__(self, index: int | slice) -> T | list[T]:
        return self._all()[index]

    def __iter__(self) -> Iterator[T]:
        return iter(self._all())

    def __len__(self) -> int:
        return len(self.raws)
