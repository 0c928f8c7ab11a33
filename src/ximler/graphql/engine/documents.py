"""Query texts, each parsed, validated, limited and priced once, then cached: a request only adds its
variables.

Only valid documents are cached. The cache is LRU, bounded in number and in text size against hostile clients.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Mapping

import msgspec
from graphql import (
    DocumentNode,
    FragmentDefinitionNode,
    GraphQLError,
    NoFragmentCyclesRule,
    NoSchemaIntrospectionCustomRule,
    OperationDefinitionNode,
    OperationType,
    Source,
    parse,
    specified_rules,
    validate,
)

from ximler.graphql.engine.cost import Cost, Costs
from ximler.graphql.engine.errors import (
    NO_OPERATION,
    PARSE_FAILED,
    VALIDATION_FAILED,
    RequestRefused,
    describe_over_limit,
    describe_request_error,
)
from ximler.graphql.engine.inputs import Values, Variables
from ximler.graphql.engine.introspection import Introspection
from ximler.graphql.engine.limits import Limits, OverLimit, check_shape
from ximler.graphql.engine.plan import Plan, find_conditions
from ximler.graphql.engine.schema import Schema

__all__ = ["Document", "Documents", "Operation"]

_PLANS = 8
"""Cached plans per operation: one per combination of its `@skip` and `@include` values."""


class Operation:
    """An operation of a valid document. Plans are built on first use."""

    def __init__(
        self,
        schema: Schema,
        limits: Limits,
        node: OperationDefinitionNode,
        fragments: Mapping[str, FragmentDefinitionNode],
        cost: Cost,
    ) -> None:
        self.name = node.name.value if node.name else None
        self.mutation = node.operation is OperationType.MUTATION
        self.subscription = node.operation is OperationType.SUBSCRIPTION
        self.cost = cost
        self.digest = hashlib.sha256(node.loc.source.body.encode()).hexdigest()[:16] if node.loc else ""
        self.variables = Variables(schema.core, node, limits)
        self._schema = schema
        self._node = node
        self._fragments = fragments
        self._conditions = find_conditions(node, fragments)
        self._plans: OrderedDict[tuple[bool | None, ...], Plan] = OrderedDict()

    def plan(self, values: Values) -> Plan:
        """The plan for these values of `@skip` and `@include`. The most recently used plans are cached."""
        key = tuple(values.coerced.get(name) for name in self._conditions)
        plan = self._plans.get(key)
        if plan is None:
            conditions = dict(zip(self._conditions, key, strict=True))
            plan = self._plans[key] = Plan(self._schema, self._node, self._fragments, conditions)
            if len(self._plans) > _PLANS:
                self._plans.popitem(last=False)
        elif self._conditions:
            self._plans.move_to_end(key)
        plan.uses += 1
        return plan


class Document(msgspec.Struct, frozen=True):
    """A valid document's operations by name; the key of an anonymous one is None."""

    operations: Mapping[str | None, Operation]

    def get_operation(self, name: str | None) -> Operation:
        """Raises RequestRefused if no operation has the name, or several exist and none is named."""
        if name is None and len(self.operations) == 1:
            return next(iter(self.operations.values()))
        operation = self.operations.get(name)
        if operation is None or name is None:
            names = ", ".join(sorted(str(known) for known in self.operations))
            problem = (
                f"There is no operation named {name!r}" if name else "operationName must say which operation to run"
            )
            raise RequestRefused(
                [describe_request_error(GraphQLError(f"{problem}; there are: {names}."), NO_OPERATION)]
            )
        return operation


class Documents:
    """The cached documents of one schema, by text."""

    def __init__(self, schema: Schema, limits: Limits, *, introspection: bool = True) -> None:
        self._schema = schema
        self._limits = limits
        self._introspection = Introspection(schema.core)
        self._rules = specified_rules if introspection else [*specified_rules, NoSchemaIntrospectionCustomRule]
        self._kept: OrderedDict[str, Document] = OrderedDict()
        self._kept_text = 0

    def get(self, text: str) -> Document:
        """Raises RequestRefused if the text does not parse, does not validate or exceeds a limit."""
        document = self._kept.get(text)
        if document is not None:
            self._kept.move_to_end(text)
            return document
        document = self._read(text)
        self._keep(text, document)
        return document

    def _keep(self, text: str, document: Document) -> None:
        if (
            len(text) > min(self._limits.cached_text_each, self._limits.cached_text)
            or not self._limits.cached_documents
        ):
            return
        self._kept[text] = document
        self._kept_text += len(text)
        while len(self._kept) > self._limits.cached_documents or self._kept_text > self._limits.cached_text:
            oldest, _ = self._kept.popitem(last=False)
            self._kept_text -= len(oldest)

    def _read(self, text: str) -> Document:
        limits = self._limits
        try:
            if len(text) > limits.text:
                raise OverLimit("length", len(text), limits.text, "send large values as variables")
            ast = parse(Source(text, "query"), max_lexical_tokens=limits.tokens, max_comments=limits.tokens)
            circular = check_shape(ast, limits)
            if not circular:
                self._check_introspection(ast)
        except OverLimit as error:
            raise RequestRefused([describe_over_limit(error)]) from error
        except GraphQLError as error:
            raise RequestRefused([describe_request_error(error, PARSE_FAILED)]) from error
        rules = [NoFragmentCyclesRule] if circular else self._rules
        # One below the limit: graphql-core adds an error when validation stops early.
        errors = validate(self._schema.core, ast, rules, max_errors=limits.errors - 1)
        if errors:
            raise RequestRefused([describe_request_error(error, VALIDATION_FAILED) for error in errors])
        return Document(self._price(ast))

    def _check_introspection(self, ast: DocumentNode) -> None:
        fragments = _fragments(ast)
        for node in ast.definitions:
            if isinstance(node, OperationDefinitionNode):
                self._introspection.price(node, fragments)

    def _price(self, ast: DocumentNode) -> dict[str | None, Operation]:
        fragments = _fragments(ast)
        costs = Costs(self._schema.core, fragments, self._limits.page_size)
        operations: dict[str | None, Operation] = {}
        for node in ast.definitions:
            if isinstance(node, OperationDefinitionNode):
                operation = Operation(self._schema, self._limits, node, fragments, costs.price(node))
                operations[operation.name] = operation
        return operations


def _fragments(ast: DocumentNode) -> dict[str, FragmentDefinitionNode]:
    return {node.name.value: node for node in ast.definitions if isinstance(node, FragmentDefinitionNode)}
