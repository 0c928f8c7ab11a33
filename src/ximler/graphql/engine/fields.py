"""How values are read where no resolver gives them: an attribute, a key, or the type behind an interface or union."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ximler.graphql.engine.plan import Children, Field

__all__ = ["read", "type_name"]


def read(parent: Any, field: "Field") -> Any:
    """The parent's attribute of that name; of a dict the key, in snake_case or as SDL writes it."""
    if parent.__class__ is dict:
        return parent.get(field.attribute) if field.attribute in parent else parent.get(field.name)
    return getattr(parent, field.attribute)


def type_name(value: Any, children: "Children") -> str:
    """The object type behind an interface or union: a dict says it as `__typename`, a Struct by its class's name."""
    name = value.get("__typename") if isinstance(value, dict) else type(value).__name__
    if name not in children.names:
        raise TypeError(
            f"a value's type cannot be {name}: name the class after one of {', '.join(sorted(children.names))}"
        )
    return str(name)
