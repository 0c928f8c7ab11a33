"""Variables and arguments: from JSON and literals to Python values, with rules prepared once per operation.

graphql-core coerces; it is called only for values that are neither copied variables nor constants. The number
of values in lists and input objects is limited before coercion, which takes microseconds per value on the
event loop, for callers that are not authenticated yet. A value of the JSON scalar counts as one, because it
is not traversed.
"""

import copy
from collections.abc import Mapping, Sequence
from datetime import datetime
from types import SimpleNamespace
from typing import Any, NamedTuple

from graphql import (
    FieldNode,
    GraphQLArgument,
    GraphQLField,
    GraphQLInputType,
    GraphQLSchema,
    NameNode,
    OperationDefinitionNode,
    Undefined,
    ValueNode,
    VariableNode,
    coerce_input_literal,
    coerce_input_value,
    get_argument_values,
    get_variable_values,
    is_input_object_type,
    is_list_type,
    is_non_null_type,
    type_from_ast,
)
from graphql.execution.values import VariableValues

from ximler.graphql.engine.arguments import Reader
from ximler.graphql.engine.errors import BAD_INPUT, RequestRefused, describe_over_limit, describe_request_error
from ximler.graphql.engine.limits import Limits, OverLimit

__all__ = ["Arguments", "Values", "Variables"]

_IMMUTABLE = (str, int, float, bool, datetime, type(None))

_LONGEST_NAME = 500


class _Variable(NamedTuple):
    name: str
    type: GraphQLInputType
    default: Any
    """Undefined if there is none."""
    required: bool


class Values:
    """The variables of one request: `coerced` by name. Absent variables without a default are left out."""

    __slots__ = ("_of", "_whole", "coerced", "raw")

    def __init__(self, of: "Variables", raw: Mapping[str, Any], coerced: dict[str, Any]) -> None:
        self._of = of
        self.raw = raw
        self._whole: VariableValues | None = None
        self.coerced = coerced

    def whole(self) -> VariableValues:
        """graphql-core's form, for literals that contain variables."""
        if self._whole is None:
            self._whole = self._of.ask(self.raw)
        return self._whole


class Variables:
    """An operation's variables."""

    def __init__(self, schema: GraphQLSchema, operation: OperationDefinitionNode, limits: Limits) -> None:
        self._schema = schema
        self._limits = limits
        self._nodes = operation.variable_definitions or ()
        self._variables: list[_Variable] = []
        for node in self._nodes:
            type_: Any = type_from_ast(schema, node.type)
            default = Undefined if node.default_value is None else coerce_input_literal(node.default_value, type_)
            required = is_non_null_type(type_) and default is Undefined
            self._variables.append(_Variable(node.variable.name.value, type_, default, required))

    def coerce(self, raw: Mapping[str, Any]) -> Values:
        """Raises RequestRefused if a value does not fit its type,
        or lists and objects have too many values."""
        coerced: dict[str, Any] = {}
        budget = self._limits.inputs
        for name, type_, default, required in self._variables:
            value = raw.get(name, Undefined)
            if value is Undefined and not required:
                if default is not Undefined:
                    coerced[name] = default if isinstance(default, _IMMUTABLE) else copy.deepcopy(default)
                continue
            if isinstance(value, list | dict):
                budget -= self._count(value, type_, budget)
            try:
                made = Undefined if value is Undefined else coerce_input_value(value, type_)
            except RecursionError:
                made = Undefined
            if made is Undefined:
                self.ask(raw)  # raises with the reason
            coerced[name] = made
        return Values(self, raw, coerced)

    def ask(self, raw: Mapping[str, Any]) -> VariableValues:
        """Coerce all variables with graphql-core. Raises RequestRefused with its errors."""
        found = get_variable_values(self._schema, self._nodes, dict(raw), max_errors=self._limits.errors - 1)
        if isinstance(found, list):
            raise RequestRefused([describe_request_error(error, BAD_INPUT) for error in found])
        return found

    def _count(self, value: Any, type_: GraphQLInputType, most: int) -> int:
        """The number of values inside `value`, to the depth of its type.
        Raises RequestRefused above `most`."""
        count = 0
        stack: list[tuple[Any, Any]] = [(value, type_)]
        while stack:
            value, kind = stack.pop()
            kind = kind.of_type if is_non_null_type(kind) else kind
            if is_list_type(kind):
                items = value if isinstance(value, list) else [value]
                inner = ((item, kind.of_type) for item in items)
            elif isinstance(value, dict) and is_input_object_type(kind):
                items = list(value)
                if count + len(items) <= most and max(map(len, items), default=0) > _LONGEST_NAME:
                    # Searching for similar names of a megabyte takes 50 ms.
                    error = OverLimit("length of a name", max(map(len, items)), _LONGEST_NAME, "look at the schema")
                    raise RequestRefused([describe_over_limit(error)])
                inner = ((value[name], kind.fields[name].type) for name in items if name in kind.fields)
            else:
                continue
            count += len(items)
            if count > most:
                total = self._limits.inputs - most + count
                error = OverLimit("number of input values", total, self._limits.inputs, "send fewer at a time")
                raise RequestRefused([describe_over_limit(error)])
            stack += [(item, type_) for item, type_ in inner if isinstance(item, list | dict)]
        return count


class Arguments:
    """The arguments of a field in one selection."""

    def __init__(self, field: GraphQLField, node: FieldNode, readers: Mapping[str, Reader]) -> None:
        self._field = field
        self._node = node
        self._readers = readers
        self._constants: dict[str, Any] = {}
        self._defaults: dict[str, Any] = {}
        self._copies: list[tuple[str, str, Any, bool]] = []
        self._general = False
        given = {argument.name.value: argument.value for argument in node.arguments or ()}
        for name, argument in field.args.items():
            self._add(argument, argument.out_name or name, given.get(name))

    def _add(self, argument: GraphQLArgument, name: str, node: ValueNode | None) -> None:
        default = self._defaults[name] = _default(argument)
        if isinstance(node, VariableNode):
            self._copies.append((name, node.name.value, default, is_non_null_type(argument.type)))
            value = default
        elif node is None:
            value = default
        else:
            value = Undefined if _has_variable(node) else coerce_input_literal(node, argument.type)
            self._general = self._general or value is Undefined
        if value is not Undefined and not isinstance(value, _IMMUTABLE):
            self._general = True  # copied per request, which may mutate it
        elif value is not Undefined and not isinstance(node, VariableNode):
            self._constants[name] = value

    def evaluate(self, values: Values) -> dict[str, Any]:
        """Keyword arguments for the resolver. Raises GraphQLError, or Invalid if a Struct's constraint is
        violated.
        """
        arguments = self._ask(values) if self._general else self._copy(values)
        for name, read in self._readers.items():
            if name in arguments:
                arguments[name] = read(arguments[name])
        return arguments

    def _copy(self, values: Values) -> dict[str, Any]:
        arguments = dict(self._constants)
        for name, variable, default, required in self._copies:
            value = values.coerced.get(variable, default)
            if required and (value is None or value is Undefined):
                return self._ask(values)  # raises with the reason
            if value is not Undefined:
                arguments[name] = value
        return arguments

    def _ask(self, values: Values) -> dict[str, Any]:
        found = get_argument_values(self._field, self._node, values.whole())
        return {name: copy.deepcopy(v) if v is self._defaults[name] else v for name, v in found.items()}


def _default(argument: GraphQLArgument) -> Any:
    if argument.default is None:
        return Undefined
    empty = FieldNode(name=NameNode(value="default"), arguments=())
    holder: Any = SimpleNamespace(args={"value": argument})
    found: dict[str, Any] = get_argument_values(holder, empty)
    return next(iter(found.values()), Undefined)


def _has_variable(node: Any) -> bool:
    if isinstance(node, VariableNode):
        return True
    inner: Sequence[Any] = getattr(node, "values", None) or [
        field.value for field in getattr(node, "fields", None) or ()
    ]
    return any(map(_has_variable, inner))
