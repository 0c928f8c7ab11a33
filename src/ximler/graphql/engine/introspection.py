"""The cost of introspection: exactly the fields that it resolves, counted over the schema.

Introspection lists nest (types, their fields, their types' fields, …), so a few kilobytes of text within
every depth and breadth limit can select millions of fields. The count is by distinct object and multiplicity,
not by occurrence, so computing it is fast.
"""

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

from graphql import (
    FieldNode,
    FragmentDefinitionNode,
    FragmentSpreadNode,
    GraphQLField,
    GraphQLSchema,
    InlineFragmentNode,
    OperationDefinitionNode,
    SelectionSetNode,
    StringValueNode,
    get_introspection_query,
    get_named_type,
    get_nullable_type,
    introspection_types,
    is_list_type,
    is_object_type,
    parse,
)

from ximler.graphql.engine.limits import OverLimit

__all__ = ["Introspection"]

_ALLOWANCE = 2
"""Factor over the largest query that GraphiQL, Apollo and code generators send."""

# Objects of one introspection type (a type, a named field, …) by identity, with their multiplicity.
_Objects = dict[int, tuple[Any, int]]


class Introspection:
    """Computes the cost of introspecting one schema."""

    def __init__(self, schema: GraphQLSchema) -> None:
        self._schema = schema
        self._info = SimpleNamespace(schema=schema)
        self._known: dict[tuple[str, str, int], list[Any]] = {}
        fullest = get_introspection_query(
            specified_by_url=True,
            directive_is_repeatable=True,
            schema_description=True,
            input_value_deprecation=True,
            one_of=True,
        )
        self._most = 10**9
        document = parse(fullest)
        fragments = {node.name.value: node for node in document.definitions if isinstance(node, FragmentDefinitionNode)}
        self._most = _ALLOWANCE * self.price(document.definitions[0], fragments)  # type: ignore[arg-type]  # its query

    def price(self, operation: OperationDefinitionNode, fragments: Mapping[str, FragmentDefinitionNode]) -> int:
        """The number of fields that an operation's introspection resolves. Raises OverLimit.

        The document may be invalid, because this runs before the slower validation; its fragments must not be
        cyclic.
        """
        spent = 0

        def spend(count: int) -> None:
            nonlocal spent
            spent += count
            if spent > self._most:
                raise OverLimit("introspection cost", spent, self._most, "ask in parts, each list once")

        self._roots(operation.selection_set, fragments, spend)
        return spent

    def _roots(
        self,
        selection_set: SelectionSetNode,
        fragments: Mapping[str, FragmentDefinitionNode],
        spend: Callable[[int], None],
    ) -> None:
        for node in _fields(selection_set, fragments):
            if node.selection_set is None:
                continue
            if node.name.value == "__schema":
                self._spend("__Schema", _count([self._schema]), node.selection_set, fragments, spend)
            elif node.name.value == "__type":
                self._spend("__Type", _count(self._named(node)), node.selection_set, fragments, spend)

    def _named(self, node: FieldNode) -> list[Any]:
        """The type named by a literal argument; all types if the argument is a variable."""
        name = next((argument.value for argument in node.arguments or ()), None)
        if not isinstance(name, StringValueNode):
            return list(self._schema.type_map.values())
        found = self._schema.type_map.get(name.value)
        return [found] if found else []

    def _spend(
        self,
        kind: str,
        objects: _Objects,
        selection_set: SelectionSetNode,
        fragments: Mapping[str, FragmentDefinitionNode],
        spend: Callable[[int], None],
    ) -> None:
        times = sum(count for _, count in objects.values())
        for node in _fields(selection_set, fragments):
            spend(times)
            field = introspection_types[kind].fields.get(node.name.value)  # type: ignore[attr-defined]  # an object type
            if field is None or node.selection_set is None or not is_object_type(get_named_type(field.type)):
                continue
            inner: _Objects = {}
            for one, count in objects.values():
                for child in self._children(kind, node.name.value, field, one):
                    inner[id(child)] = child, count + inner.get(id(child), (child, 0))[1]
            if inner:
                self._spend(get_named_type(field.type).name, inner, node.selection_set, fragments, spend)

    def _children(self, kind: str, name: str, field: GraphQLField, one: Any) -> list[Any]:
        key = kind, name, id(one)
        if key not in self._known:
            arguments = {"includeDeprecated": True} if "includeDeprecated" in field.args else {}
            found = field.resolve(one, self._info, **arguments) if field.resolve else None
            many = is_list_type(get_nullable_type(field.type))
            self._known[key] = [] if found is None else list(found) if many else [found]
        return self._known[key]


def _count(objects: list[Any]) -> _Objects:
    return {id(one): (one, 1) for one in objects}


def _fields(selection_set: SelectionSetNode, fragments: Mapping[str, FragmentDefinitionNode]) -> list[FieldNode]:
    found: list[FieldNode] = []
    for selection in selection_set.selections:
        if isinstance(selection, FieldNode):
            found.append(selection)
        elif isinstance(selection, FragmentSpreadNode):
            fragment = fragments.get(selection.name.value)
            found += _fields(fragment.selection_set, fragments) if fragment else []
        elif isinstance(selection, InlineFragmentNode):
            found += _fields(selection.selection_set, fragments)
    return found
