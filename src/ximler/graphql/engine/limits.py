"""How much one request may ask for, checked before anything is executed, and before the checks themselves get costly.

    shape (`check_shape`)   from the text alone, before validation: depth, breadth, root fields, repeats
    price (`cost`)          with schema and variables, before execution: cost

A fragment is measured once, however often it is spread, so a few lines that unfold to billions of fields are refused
as fast as any other text. Introspection has an allowance of its own, enough for the query that GraphiQL, Apollo and
code generators send.
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
    """What the engine refuses, and how much it keeps."""

    depth: int = 12
    """Levels of fields; `{ me { name } }` has two."""
    breadth: int = 500
    """Fields in a document, with every fragment unfolded where it is spread."""
    repeats: int = 5_000
    """Pairs of fields with the same response name in the same place, and of fragments. Validation compares every pair:
    250 repeats of one field are 1.2 kB of text and, at 31,000 pairs, a third of a second of it."""
    root_fields: int = 20
    """Root fields of an operation, aliases counted: twenty attempts at a mutation a request, not five hundred."""
    cost: int = 20_000
    """Fields that executing may resolve, lists unfolded (see `cost`): a fifth of a second of it."""
    calls: int = 100
    """Calls of batch resolvers: a page of an application needs a dozen, aliases with arguments of their own any number."""
    inputs: int = 20_000
    """Values inside lists and input objects of a request's variables; a JSON value counts as one. Coercing takes about
    2 µs each, before the caller is known."""
    page_size: int = 20
    """What a list is taken to hold where the query does not say."""
    introspection_depth: int = 20
    introspection_breadth: int = 1_000
    text: int = 128 * 1024
    """Characters of a query's text."""
    tokens: int = 5_000
    """Lexical tokens of a query's text, and as many comments."""
    seconds: float = 30
    """How long an operation may take. Past it, its resolvers are cancelled, and their database calls with them."""
    slow_seconds: float = 1
    """How long an operation takes that is logged, with its calls and round trips."""
    errors: int = 10
    """Errors that validation or reading variables reports before it stops."""
    cached_documents: int = 1_000
    cached_text: int = 500_000
    """Characters of text that all cached documents may have together; a parsed one takes 130 bytes for each."""
    cached_text_each: int = 64 * 1024
    """A longer text is parsed on every request."""


class OverLimit(Exception):
    """A request asks for more than a limit allows."""

    def __init__(self, limit: str, value: int, maximum: int, remedy: str) -> None:
        shown = f"{value:,}" if value < 10**15 else "more than 10^15"
        super().__init__(f"This query's {limit} is {shown}, the maximum is {maximum:,}: {remedy}.")
        self.limit = limit
        self.value = min(value, 10**15)
        self.maximum = maximum


def check_shape(document: DocumentNode, limits: Limits) -> bool:
    """Refuse a document by its text alone; raises OverLimit. True where fragments spread each other in a circle.

    Such a document has no size, and only the rule that names its circles may look at it.
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
    """The shapes of one document's selection sets."""

    def __init__(self, document: DocumentNode) -> None:
        nodes = document.definitions
        self._operations = [node for node in nodes if isinstance(node, OperationDefinitionNode)]
        self._fragments = {node.name.value: node for node in nodes if isinstance(node, FragmentDefinitionNode)}
        self._measured: dict[str, _Shape | None] = {}
        self.circular = False

    def measure_document(self) -> _Shape:
        """Every operation's shape, and that of fragments nobody spreads: validation visits those as well."""
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
        """A spread counts at least one, also of nothing: otherwise spreading nothing could unfold without end."""
        if name not in self._measured:
            self._measured[name] = None  # being measured
            fragment = self._fragments.get(name)
            shape = self._measure(fragment.selection_set) if fragment else _Shape()
            self._measured[name] = shape if shape.breadth or shape.meta_breadth else _Shape(breadth=1)
        shape_or_circle = self._measured[name]
        self.circular |= shape_or_circle is None
        return shape_or_circle or _Shape()

    def count_places(self) -> tuple[int, int]:
        """The most root fields that an operation has under different names, and the pairs that validation compares.

        Unfolds fragments: only for a document within its breadth.
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
