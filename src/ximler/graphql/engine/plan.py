"""Plans: what an operation selects, computed once from its text and used by every execution.

A plan is a tree. A `Selection` has the fields of one object type in one place, in response order. A `Field`
has its type, its arguments and the source of its value: an attribute, a resolver or the type's name.
Fragments are expanded and fields merged as specified in https://spec.graphql.org/draft/#CollectFields(). A
plan is specific to the values of the variables in `@skip` and `@include`, so execution evaluates no
conditions.
"""

from collections.abc import Callable, Mapping
from typing import Any

from graphql import (
    BooleanValueNode,
    DirectiveNode,
    FieldNode,
    FragmentDefinitionNode,
    FragmentSpreadNode,
    GraphQLError,
    GraphQLNonNull,
    GraphQLObjectType,
    GraphQLString,
    InlineFragmentNode,
    OperationDefinitionNode,
    SelectionNode,
    SelectionSetNode,
    VariableNode,
    is_abstract_type,
    is_leaf_type,
    is_list_type,
    is_non_null_type,
)

from ximler.graphql.engine.inputs import Arguments
from ximler.graphql.engine.names import snake
from ximler.graphql.engine.registry import Resolver
from ximler.graphql.engine.schema import Schema
from ximler.graphql.engine.selected import Selected

__all__ = ["INTROSPECTION", "Conditions", "Field", "Plan", "Selection", "Shape", "find_conditions"]

Conditions = Mapping[str, bool | None]
"""Values of the variables in `@skip` and `@include`; None for null and absent ones."""

INTROSPECTION = ("__schema", "__type")

Fragments = Mapping[str, FragmentDefinitionNode]


class Shape:
    """An output type, decomposed into nullability, list levels and inner type."""

    __slots__ = ("inner", "kind", "required", "type")

    def __init__(self, type_: Any) -> None:
        self.required = is_non_null_type(type_)
        self.type: Any = type_.of_type if self.required else type_
        self.inner: Shape | None = None
        if is_list_type(self.type):
            self.kind = "list"
            self.inner = Shape(self.type.of_type)
        else:
            self.kind = "leaf" if is_leaf_type(self.type) else "abstract" if is_abstract_type(self.type) else "object"

    @property
    def levels(self) -> "tuple[Shape, ...]":
        """This shape and its inner ones, outermost first."""
        return (self,) if self.inner is None else (self, *self.inner.levels)


class Field:
    """A selected field: repeated selections merged, under its response name."""

    __slots__ = (
        "above", "arguments", "attribute", "children", "complete", "coordinate", "key", "name", "nodes", "order", "place",
        "resolver", "selected", "shape", "share",
    )  # fmt: skip

    def __init__(
        self, plan: "Plan", parent: GraphQLObjectType, key: str, nodes: list[FieldNode], above: "Field | None"
    ) -> None:
        self.key = key
        self.nodes = nodes
        self.name = nodes[0].name.value
        self.above = above
        self.place: tuple[str, ...] = (*above.place, key) if above else (key,)
        self.order = plan.number()
        self.coordinate = f"{parent.name}.{self.name}"
        self.attribute = snake(self.name)
        self.resolver: Resolver | None = None
        self.arguments: Arguments | None = None
        self.complete: Callable[..., Any] | None = None  # compiled on the plan's second use
        self.share: Callable[..., Any] | None = None  # as `complete`, for `Shared` values
        self.children: Children | None = None
        self.selected: Selected | None = None
        definition = parent.fields.get(self.name)
        if definition is None:  # __typename, __schema, __type
            self.shape = TYPENAME
            return
        self.shape = plan.shape(definition.type)
        bound = plan.schema.bound.get(self.coordinate)
        if bound is not None:
            self.resolver = bound.resolver
            self.selected = Selected(self) if bound.resolver.selects else None
            self.arguments = Arguments(definition, nodes[0], bound.readers) if definition.args else None
        if self.shape.levels[-1].kind != "leaf":
            self.children = Children(plan, self)


class Children:
    """A field's selections by concrete object type; of an interface or union, only the types seen so far."""

    __slots__ = ("_by_type", "_field", "_nodes", "_plan", "names")

    def __init__(self, plan: "Plan", field: Field) -> None:
        self._plan = plan
        self._field = field
        self._nodes = [node.selection_set for node in field.nodes if node.selection_set]
        self._by_type: dict[str, Selection] = {}
        type_ = field.shape.levels[-1].type
        possible = plan.schema.core.get_possible_types(type_) if is_abstract_type(type_) else [type_]
        self.names = frozenset(each.name for each in possible)

    def of(self, type_name: str) -> "Selection":
        found = self._by_type.get(type_name)
        if found is None:
            type_ = self._plan.schema.core.type_map[type_name]
            assert isinstance(type_, GraphQLObjectType)  # noqa: S101 (one of `names`)
            found = self._by_type[type_name] = Selection(self._plan, type_, self._nodes, self._field)
        return found


class Selection:
    """The fields selected of an object type in one place of the response."""

    __slots__ = ("compiled", "error", "fields", "type_name")

    def __init__(
        self, plan: "Plan", type_: GraphQLObjectType, sets: list[SelectionSetNode], above: Field | None
    ) -> None:
        self.type_name = type_.name
        self.fields: list[Field] = []
        self.error: GraphQLError | None = None
        self.compiled: Callable[..., Any] | None = None
        groups: dict[str, list[FieldNode]] = {}
        visited: set[str] = set()
        try:
            for nodes in sets:
                plan.collect(nodes, type_, groups, visited)
        except GraphQLError as error:
            self.error = error
            return
        self.fields = [Field(plan, type_, key, found, above) for key, found in groups.items()]


class Plan:
    """An operation's plan for one set of conditions."""

    def __init__(
        self, schema: Schema, operation: OperationDefinitionNode, fragments: Fragments, conditions: Conditions
    ) -> None:
        self.schema = schema
        self.operation = operation
        self.fragments = fragments
        self.uses = 0
        self._conditions = conditions
        self._count = 0
        self._shapes: dict[str, Shape] = {}
        root = schema.core.get_root_type(operation.operation)
        assert root is not None  # noqa: S101 (validated)
        self.root = Selection(self, root, [operation.selection_set], None)

    def number(self) -> int:
        self._count += 1
        return self._count

    def shape(self, type_: Any) -> Shape:
        text = str(type_)
        if text not in self._shapes:
            self._shapes[text] = Shape(type_)
        return self._shapes[text]

    def collect(
        self, nodes: SelectionSetNode, type_: GraphQLObjectType, groups: dict[str, list[FieldNode]], visited: set[str]
    ) -> None:
        """Group the fields that apply to the type by their response name."""
        for node in nodes.selections:
            if node.directives and not self._includes(node):
                continue
            if isinstance(node, FieldNode):
                groups.setdefault((node.alias or node.name).value, []).append(node)
            elif isinstance(node, InlineFragmentNode):
                if self._matches(node, type_):
                    self.collect(node.selection_set, type_, groups, visited)
            elif isinstance(node, FragmentSpreadNode) and node.name.value not in visited:
                fragment = self.fragments[node.name.value]
                if self._matches(fragment, type_):
                    visited.add(node.name.value)
                    self.collect(fragment.selection_set, type_, groups, visited)

    def _matches(self, fragment: InlineFragmentNode | FragmentDefinitionNode, type_: GraphQLObjectType) -> bool:
        if fragment.type_condition is None or fragment.type_condition.name.value == type_.name:
            return True
        condition: Any = self.schema.core.type_map[fragment.type_condition.name.value]
        return is_abstract_type(condition) and self.schema.core.is_sub_type(condition, type_)

    def _includes(self, node: SelectionNode) -> bool:
        directives = {directive.name.value: directive for directive in node.directives or ()}
        skip, include = directives.get("skip"), directives.get("include")
        return not (skip and self._holds(skip)) and (include is None or self._holds(include))

    def _holds(self, directive: DirectiveNode) -> bool:
        value = directive.arguments[0].value if directive.arguments else None
        if isinstance(value, BooleanValueNode):
            return value.value
        holds = self._conditions.get(value.name.value) if isinstance(value, VariableNode) else None
        if holds is None:
            message = f"Argument 'if' of @{directive.name.value} has invalid value: it must not be null."
            raise GraphQLError(message, value or directive)
        return holds


TYPENAME = Shape(GraphQLNonNull(GraphQLString))


def find_conditions(operation: OperationDefinitionNode, fragments: Fragments) -> tuple[str, ...]:
    """The variables used by `@skip` and `@include` anywhere in an operation."""
    found: set[str] = set()
    visited: set[str] = set()

    def visit(nodes: SelectionSetNode) -> None:
        for node in nodes.selections:
            for directive in node.directives or ():
                if directive.name.value in ("skip", "include"):
                    values = (argument.value for argument in directive.arguments or ())
                    found.update(value.name.value for value in values if isinstance(value, VariableNode))
            if isinstance(node, FragmentSpreadNode):
                if node.name.value not in visited:
                    visited.add(node.name.value)
                    visit(fragments[node.name.value].selection_set)
            elif isinstance(node, FieldNode | InlineFragmentNode) and node.selection_set:
                visit(node.selection_set)

    visit(operation.selection_set)
    return tuple(sorted(found))
