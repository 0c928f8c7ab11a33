"""What an operation may cost: the objects its answer may hold, plus one for every list and every resolver call.

    projects(first: 100) {        1  a root resolver's call
      nodes {                     1  a list, of 100 objects that cost 1 each
        owner { name }            1  a batch resolver, for each of the 100
      }
    }                             1 + 1 + 100 × (1 + 1) = 202

A list holds as many as its `first` or `last` says, or that of the connection right above it, or 20. Fields that only
read what is there cost nothing. Whatever depends on a variable stays a formula: compiled once a document, evaluated a
request. Skipped fields (`@skip`, `@include`) are counted, merged ones twice: the cost is an upper bound.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec
from graphql import (
    FieldNode,
    FragmentDefinitionNode,
    FragmentSpreadNode,
    GraphQLArgument,
    GraphQLField,
    GraphQLNamedType,
    GraphQLSchema,
    IntValueNode,
    OperationDefinitionNode,
    SelectionSetNode,
    ValueNode,
    VariableNode,
    get_named_type,
    get_nullable_type,
    is_composite_type,
    is_list_type,
)

__all__ = ["Cost", "Costs"]


class FromVariable(NamedTuple):
    """A page's size that a variable says; `otherwise` where it is absent or null."""

    name: str
    otherwise: int


Size = int | FromVariable


class Cost(msgspec.Struct, frozen=True):
    """A constant, plus sums that each are multiplied by a variable's value."""

    constant: int
    parts: tuple[tuple[FromVariable, "Cost"], ...] = ()

    def plus(self, other: "Cost") -> "Cost":
        return Cost(self.constant + other.constant, self.parts + other.parts)

    def times(self, size: Size) -> "Cost":
        if isinstance(size, FromVariable):
            return Cost(0, ((size, self),))
        return Cost(self.constant * size, tuple((by, part.times(size)) for by, part in self.parts) if size else ())

    def total(self, variables: Mapping[str, Any]) -> int:
        total = self.constant
        for size, part in self.parts:
            value = variables.get(size.name)
            total += part.total(variables) * (max(value, 0) if isinstance(value, int) else size.otherwise)
        return total


NOTHING = Cost(0)
ONE = Cost(1)


class _Sum(NamedTuple):
    """What a selection set costs: once, and again for every object of the page it stands in."""

    once: Cost = NOTHING
    each: Cost = NOTHING

    def beside(self, other: "_Sum") -> "_Sum":
        return _Sum(self.once.plus(other.once), self.each.plus(other.each))

    def on_page_of(self, size: Size) -> Cost:
        return self.once.plus(self.each.times(size))


class Costs:
    """Prices the operations of one valid document, whose size has been checked."""

    def __init__(
        self,
        schema: GraphQLSchema,
        resolved: frozenset[str],
        fragments: Mapping[str, FragmentDefinitionNode],
        page: int,
    ) -> None:
        self._schema = schema
        self._resolved = resolved
        self._fragments = fragments
        self._page = page
        self._priced: dict[str, _Sum] = {}

    def price(self, operation: OperationDefinitionNode) -> Cost:
        root = self._schema.get_root_type(operation.operation)
        if root is None:
            return NOTHING
        return self._price(operation.selection_set, root).on_page_of(self._page)

    def _price(self, selection_set: SelectionSetNode, parent: GraphQLNamedType) -> _Sum:
        total = _Sum()
        for selection in selection_set.selections:
            if isinstance(selection, FieldNode):
                total = total.beside(self._price_field(selection, parent))
            elif isinstance(selection, FragmentSpreadNode):
                total = total.beside(self._price_fragment(selection.name.value))
            else:
                condition = selection.type_condition  # type: ignore[attr-defined]  # an inline fragment
                inner = self._schema.type_map[condition.name.value] if condition else parent
                total = total.beside(self._price(selection.selection_set, inner))  # type: ignore[attr-defined]
        return total

    def _price_fragment(self, name: str) -> _Sum:
        if name not in self._priced:
            fragment = self._fragments[name]
            self._priced[name] = self._price(
                fragment.selection_set, self._schema.type_map[fragment.type_condition.name.value]
            )
        return self._priced[name]

    def _price_field(self, node: FieldNode, parent: GraphQLNamedType) -> _Sum:
        field = getattr(parent, "fields", {}).get(node.name.value)
        if field is None:  # __typename, __schema, __type: introspection has limits of its own
            return _Sum()
        call = ONE if f"{parent.name}.{node.name.value}" in self._resolved else NOTHING
        type_ = get_named_type(field.type)
        if not is_composite_type(type_) or node.selection_set is None:
            return _Sum(call)
        page = self._find_page(node, field)
        inner = self._price(node.selection_set, type_).on_page_of(self._page if page is None else page)
        if not is_list_type(get_nullable_type(field.type)):
            return _Sum(call.plus(inner))
        item = ONE.plus(inner)
        return _Sum(ONE, item) if page is None else _Sum(ONE.plus(item.times(page)))

    def _find_page(self, node: FieldNode, field: GraphQLField) -> Size | None:
        """The size of the page that the field asks for; None where it takes neither `first` nor `last`."""
        sizes = [self._find_size(node, name, field.args[name]) for name in ("first", "last") if name in field.args]
        given = [size for size in sizes if size is not None]
        return (given[0] if given else self._page) if sizes else None

    def _find_size(self, node: FieldNode, name: str, argument: GraphQLArgument) -> Size | None:
        literal = argument.default.literal if argument.default else None
        default = int(literal.value) if isinstance(literal, IntValueNode) else None
        for given in node.arguments or ():
            if given.name.value == name:
                return _size(given.value, default, self._page)
        return default


def _size(value: ValueNode, default: int | None, page: int) -> Size | None:
    if isinstance(value, IntValueNode):
        return max(int(value.value), 0)
    if isinstance(value, VariableNode):
        return FromVariable(value.name.value, page if default is None else default)
    return default
