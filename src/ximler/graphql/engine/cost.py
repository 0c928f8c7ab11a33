"""The cost of an operation: an upper bound of the fields that executing it resolves.

    projects(first: 100) {        1
      nodes {                     1
        id                        100 × 1
        owner { name }            100 × 2
      }
    }                             302

A list is assumed to have as many items as its `first` or `last`, or that of the connection directly above it,
or 20. A field that is more expensive than reading an attribute declares a weight in SDL: `canvasData: JSON!
@cost(weight: 900)`. Terms that depend on a variable stay symbolic: compiled once per document, evaluated per
request. Skipped fields (`@skip`, `@include`) are counted, and merged fields count twice. Introspection has
its own limits (see `introspection`).
"""

from collections.abc import Mapping
from functools import reduce
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
    InlineFragmentNode,
    IntValueNode,
    OperationDefinitionNode,
    SelectionSetNode,
    ValueNode,
    VariableNode,
    get_named_type,
    get_nullable_type,
    is_abstract_type,
    is_list_type,
)

__all__ = ["SDL", "Cost", "Costs", "find_weight"]

SDL = """
"The field's cost in a query, if more than 1."
directive @cost(weight: Int!) on FIELD_DEFINITION
"""


class FromVariable(NamedTuple):
    """A page size given by a variable; `otherwise` if the variable is absent or null."""

    name: str
    otherwise: int


Size = int | FromVariable


class Cost(msgspec.Struct, frozen=True):
    """A constant plus sums, each multiplied by a variable's value."""

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


def find_weight(field: GraphQLField) -> int:
    """The field's weight from `@cost`, else 1. Raises ValueError if it is not an integer of 0 or more."""
    for directive in (field.ast_node.directives if field.ast_node else None) or ():
        if directive.name.value == "cost":
            value = directive.arguments[0].value if directive.arguments else None
            if not isinstance(value, IntValueNode) or int(value.value) < 0:
                raise ValueError("@cost takes a whole number of 0 or more")
            return int(value.value)
    return 1


class _Sum(NamedTuple):
    """The cost of a selection set: once, and per object of the page that contains it."""

    once: Cost = NOTHING
    each: Cost = NOTHING

    def beside(self, other: "_Sum") -> "_Sum":
        return _Sum(self.once.plus(other.once), self.each.plus(other.each))

    def on_page_of(self, *sizes: Size) -> Cost:
        return reduce(Cost.plus, (self.each.times(size) for size in sizes), self.once)


class Costs:
    """Computes the cost of a valid document's operations. The document's shape has been checked."""

    def __init__(self, schema: GraphQLSchema, fragments: Mapping[str, FragmentDefinitionNode], page: int) -> None:
        self._schema = schema
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
            elif isinstance(selection, InlineFragmentNode):
                condition = selection.type_condition
                inner = self._schema.type_map[condition.name.value] if condition else parent
                total = total.beside(self._price(selection.selection_set, inner))
        return total

    def _price_fragment(self, name: str) -> _Sum:
        if name not in self._priced:
            fragment = self._fragments[name]
            self._priced[name] = self._price(
                fragment.selection_set, self._schema.type_map[fragment.type_condition.name.value]
            )
        return self._priced[name]

    def _price_field(self, node: FieldNode, parent: GraphQLNamedType) -> _Sum:
        name = node.name.value
        if name in ("__schema", "__type"):
            return _Sum()
        field = getattr(parent, "fields", {}).get(name)
        if field is None:  # __typename
            return _Sum(ONE)
        own = Cost(self._weigh(name, field, parent))
        if node.selection_set is None:
            return _Sum(own)
        sizes = self._find_sizes(node, field)
        each = self._price(node.selection_set, get_named_type(field.type)).on_page_of(*sizes or (self._page,))
        if not is_list_type(get_nullable_type(field.type)):
            return _Sum(own.plus(each))
        return _Sum(own, each) if sizes is None else _Sum(_Sum(own, each).on_page_of(*sizes))

    def _weigh(self, name: str, field: GraphQLField, parent: GraphQLNamedType) -> int:
        """The weight of a field; for an interface, the maximum over its implementations."""
        if not is_abstract_type(parent):
            return find_weight(field)
        behind = [type_.fields[name] for type_ in self._schema.get_possible_types(parent)]
        return max(map(find_weight, [field, *behind]))

    def _find_sizes(self, node: FieldNode, field: GraphQLField) -> tuple[Size, ...] | None:
        """The page sizes that the field requests; None if it takes neither `first` nor `last`.

        Two if a query gives both, because the resolver decides which one applies.
        """
        arguments = {name: field.args[name] for name in ("first", "last") if name in field.args}
        if not arguments:
            return None
        given = {argument.name.value: argument.value for argument in node.arguments or ()}
        found = (self._find_size(given.get(name), argument) for name, argument in arguments.items())
        return tuple(size for size in found if size is not None) or (self._page,)

    def _find_size(self, given: ValueNode | None, argument: GraphQLArgument) -> Size | None:
        if isinstance(given, IntValueNode):
            return max(int(given.value), 0)
        literal = argument.default.literal if argument.default else None
        default = int(literal.value) if isinstance(literal, IntValueNode) else None
        if isinstance(given, VariableNode):
            return FromVariable(given.name.value, self._page if default is None else default)
        return default
