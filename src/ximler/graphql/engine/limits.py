"""Limits of a request, checked before execution, and before the checks themselves become expensive.

    shape (`check_shape`)   from the text alone, before validation: depth, breadth, root fields, repeats
    price (`cost`)          with schema and variables, before execution: cost

Each fragment is measured once, however often it is spread, so a few lines that expand to billions of fields
are rejected at once. Introspection has its own limits, sufficient for the queries of GraphiQL, Apollo and
code generators.
"""

from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import msgspec
from graphql import (
    DocumentNode,
    FieldNode,
    FragmentDefinitionNode,
    FragmentSpreadNode,
    InlineFragmentNode,
    OperationDefinitionNode,
    SelectionSetNode,
)

__all__ = ["Limits", "OverLimit", "check_shape"]


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Limits of requests and of the document cache."""

    depth: int = 12
    """Levels of fields; `{ me { name } }` has two."""
    breadth: int = 500
    """Fields in a document, with fragments expanded at every spread."""
    repeats: int = 5_000
    """Pairs of fields with the same response name in the same place, and of fragments. Validation compares
    every pair: 250 repeats of one field are 1.2 kB of text, 31,000 pairs and a third of a second.
    """
    root_fields: int = 20
    """Root fields of an operation, aliases included: limits the attempts at a mutation per request."""
    cost: int = 20_000
    """Fields that execution may resolve, lists expanded (see `cost`). The default takes a fifth of a second.
    """
    calls: int = 100
    """Calls of batch resolvers. A page of an application needs a dozen; aliases with different arguments
    multiply them.
    """
    inputs: int = 20_000
    """Values inside lists and input objects of the variables; a JSON value counts as one. Coercion takes
    about 2 µs each, before authentication.
    """
    values: int = 1_600_000
    """Values of a request's JSON, over all levels."""
    containers: int = 250_000
    """Objects and arrays among them. Decoding takes 20 times as long as for other values."""
    json_depth: int = 110
    """Levels of a request's JSON. MongoDB stores 100."""
    page_size: int = 20
    """Assumed length of lists without `first` or `last`."""
    introspection_depth: int = 20
    introspection_breadth: int = 1_000
    text: int = 128 * 1024
    """Characters of a query's text."""
    tokens: int = 5_000
    """Lexical tokens of a query's text, and as many comments."""
    seconds: float = 30
    """Timeout of an operation. Its resolvers and their database calls are then cancelled."""
    slow_seconds: float = 1
    """Duration from which an operation is logged, with its calls and round trips."""
    errors: int = 10
    """Maximum number of errors from validation or variables."""
    cached_documents: int = 1_000
    cached_text: int = 500_000
    """Maximum characters of all cached documents together. A parsed document takes 130 bytes per character.
    """
    cached_text_each: int = 64 * 1024
    """Longer texts are not cached."""


class OverLimit(Exception):
    """The request exceeds a limit."""

    def __init__(self, limit: str, value: int, maximum: int, remedy: str) -> None:
        shown = f"{value:,}" if value < 10**15 else "more than 10^15"
        super().__init__(f"This query's {limit} is {shown}, the maximum is {maximum:,}: {remedy}.")
        self.limit = limit
        self.value = min(value, 10**15)
        self.maximum = maximum


def check_shape(document: DocumentNode, limits: Limits) -> bool:
    """Check a document's text; raises OverLimit. True if its fragments form a cycle.

    The size of such a document is undefined; only the validation rule that reports cycles may run on it.
    """
    shapes = _Shapes(document)
    try:
        total = shapes.measure_document()
        if shapes.circular:
            return True
        if total.depth > limits.depth:
            raise OverLimit("depth", total.depth, limits.depth, "select fewer levels of fields")
        if total.meta_depth > limits.introspection_depth:
            raise OverLimit("introspection depth", total.meta_depth, limits.introspection_depth, "select fewer levels")
        if total.breadth > limits.breadth:
            raise OverLimit("breadth", total.breadth, limits.breadth, "select fewer fields, fragments included")
        if total.meta_breadth > limits.introspection_breadth:
            raise OverLimit("introspection breadth", total.meta_breadth, limits.introspection_breadth, "ask in parts")
        roots, pairs = shapes.count_places()
        if roots > limits.root_fields:
            raise OverLimit("number of root fields", roots, limits.root_fields, "send several requests")
        if pairs > limits.repeats:
            raise OverLimit("number of repeated fields and fragments", pairs, limits.repeats, "select each field once")
    except RecursionError:
        raise OverLimit("depth", limits.depth + 1, limits.depth, "nest fewer fragments in one another") from None
    return False


class _Shape(NamedTuple):
    depth: int = 0
    breadth: int = 0
    meta_depth: int = 0
    meta_breadth: int = 0

    def beside(self, other: "_Shape") -> "_Shape":
        return _Shape(
            max(self.depth, other.depth),
            self.breadth + other.breadth,
            max(self.meta_depth, other.meta_depth),
            self.meta_breadth + other.meta_breadth,
        )


class _Shapes:
    """The shapes of a document's selection sets."""

    def __init__(self, document: DocumentNode) -> None:
        nodes = document.definitions
        self._operations = [node for node in nodes if isinstance(node, OperationDefinitionNode)]
        self._fragments = {node.name.value: node for node in nodes if isinstance(node, FragmentDefinitionNode)}
        self._measured: dict[str, _Shape | None] = {}
        self.circular = False

    def measure_document(self) -> _Shape:
        """The shape of all operations, and of unused fragments, because validation visits them too."""
        total = _Shape()
        for operation in self._operations:
            total = total.beside(self._measure(operation.selection_set))
        for name, fragment in self._fragments.items():
            if name not in self._measured:
                total = total.beside(self._measure(fragment.selection_set))
        return total

    def _measure(self, selection_set: SelectionSetNode) -> _Shape:
        shape = _Shape()
        for selection in selection_set.selections:
            if isinstance(selection, FieldNode):
                shape = shape.beside(self._measure_field(selection))
            elif isinstance(selection, FragmentSpreadNode):
                shape = shape.beside(self._measure_fragment(selection.name.value))
            elif isinstance(selection, InlineFragmentNode):
                shape = shape.beside(self._measure(selection.selection_set))
        return shape

    def _measure_field(self, field: FieldNode) -> _Shape:
        inner = self._measure(field.selection_set) if field.selection_set else _Shape()
        if field.name.value in ("__schema", "__type"):
            return _Shape(meta_depth=1 + inner.depth, meta_breadth=1 + inner.breadth)
        return inner._replace(depth=1 + inner.depth, breadth=1 + inner.breadth)

    def _measure_fragment(self, name: str) -> _Shape:
        """A spread counts at least one, even of an empty fragment, so that empty spreads cannot multiply
        without limit.
        """
        if name not in self._measured:
            self._measured[name] = None  # being measured
            fragment = self._fragments.get(name)
            shape = self._measure(fragment.selection_set) if fragment else _Shape()
            self._measured[name] = shape if shape.breadth or shape.meta_breadth else _Shape(breadth=1)
        shape_or_circle = self._measured[name]
        self.circular |= shape_or_circle is None
        return shape_or_circle or _Shape()

    def count_places(self) -> tuple[int, int]:
        """The largest number of distinct root fields of an operation, and the number of pairs that validation
        compares.

        Expands fragments: call it only for documents within the breadth limit.
        """
        roots = pairs = 0
        for operation in self._operations:
            places = Counter(self._places(operation.selection_set, ()))
            roots = max(roots, sum(len(place) == 1 and place != ("...",) for place in places))
            pairs += sum(count * (count - 1) // 2 for count in places.values())
        return roots, pairs

    def _places(self, selection_set: SelectionSetNode, place: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
        for selection in selection_set.selections:
            if isinstance(selection, FieldNode):
                here = (*place, (selection.alias or selection.name).value)
                yield here
                if selection.selection_set:
                    yield from self._places(selection.selection_set, here)
            elif isinstance(selection, FragmentSpreadNode):
                yield (*place, "...")
                fragment = self._fragments.get(selection.name.value)
                if fragment is not None:
                    yield from self._places(fragment.selection_set, place)
            elif isinstance(selection, InlineFragmentNode):
                yield from self._places(selection.selection_set, place)
