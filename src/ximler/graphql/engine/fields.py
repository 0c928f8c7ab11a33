"""Reads values of fields without a resolver: an attribute, a key, or the concrete type of an interface or
union.
"""

from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from ximler.graphql.engine.plan import Children, Field

__all__ = ["Shared", "read", "type_name"]


class Shared(msgspec.Struct, frozen=True):
    """A value that a resolver returns to every caller, the same object until
    it changes: its JSON is made once."""

    value: Any


def read(parent: Any, field: "Field") -> Any:
    """The parent's attribute; of a dict the key, in snake_case or camelCase."""
    if parent.__class__ is dict:
        return parent.get(field.attribute) if field.attribute in parent else parent.get(field.name)
    return getattr(parent, field.attribute)


def type_name(value: Any, children: "Children") -> str:
    """The concrete type of an interface or union: a dict's `__typename`, or the name of a Struct's class."""
    name = value.get("__typename") if isinstance(value, dict) else type(value).__name__
    if name not in children.names:
        raise TypeError(
            f"a value's type cannot be {name}: name the class after one of {', '.join(sorted(children.names))}"
        )
    return str(name)
