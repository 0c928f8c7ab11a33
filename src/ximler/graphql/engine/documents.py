"""Query texts, parsed, checked and priced once each, and kept: what is left for a request is its variables.

Kept are valid documents only, the least recently used leave first, and neither their number nor their text grows
without bound, whatever clients send.
"""

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
from ximler.graphql.engine.introspection import Introspection
from ximler.graphql.engine.limits import Limits, OverLimit, check_shape
from ximler.graphql.engine.schema import Schema

__all__ = ["Document", "Documents", "Operation"]


class Operation(msgspec.Struct, frozen=True):
    name: str | None
    mutation: bool
    cost: Cost


class Document(msgspec.Struct, frozen=True):
    """A valid document and its operations by name; an anonymous one stands under None."""

    ast: DocumentNode
    operations: Mapping[str | None, Operation]

    def get_operation(self, name: str | None) -> Operation:
        """Raises RequestRefused where the name fits none, or none is given and there are several."""
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
    """The documents of one schema, by text."""

    def __init__(self, schema: Schema, limits: Limits, *, introspection: bool = True) -> None:
        self._schema = schema
        self._limits = limits
        self._introspection = Introspection(schema.core)
        self._rules = specified_rules if introspection else [*specified_rules, NoSchemaIntrospectionCustomRule]
        self._kept: OrderedDict[str, Document] = OrderedDict()
        self._kept_text = 0

    def get(self, text: str) -> Document:
        """Raises RequestRefused where the text does not parse, does not validate, or asks for too much."""
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
        # One less than the limit: that validation stopped early is reported as an error of its own.
        errors = validate(self._schema.core, ast, rules, max_errors=limits.errors - 1)
        if errors:
            raise RequestRefused([describe_request_error(error, VALIDATION_FAILED) for error in errors])
        return Document(ast, self._price(ast))

    def _check_introspection(self, ast: DocumentNode) -> None:
        fragments = _fragments(ast)
        for node in ast.definitions:
            if isinstance(node, OperationDefinitionNode):
                self._introspection.price(node, fragments)

    def _price(self, ast: DocumentNode) -> dict[str | None, Operation]:
        costs = Costs(self._schema.core, _fragments(ast), self._limits.page_size)
        operations: dict[str | None, Operation] = {}
        for node in ast.definitions:
            if isinstance(node, OperationDefinitionNode):
                name = node.name.value if node.name else None
                operations[name] = Operation(name, node.operation is OperationType.MUTATION, costs.price(node))
        return operations


def _fragments(ast: DocumentNode) -> dict[str, FragmentDefinitionNode]:
    return {node.name.value: node for node in ast.definitions if isinstance(node, FragmentDefinitionNode)}
