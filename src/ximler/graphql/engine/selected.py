"""The fields that a query selects of a resolver's value, for resolvers that read only those.

    @resolvers.query("projects")
    async def list_projects(ctx, first=None, *, selected: Selected): ...
        selected.attributes("nodes", "edges.node")      # frozenset({"id", "name"}); None: all of them

A batch resolver may read any attribute of its parents, unless it declares them: `needs=("id",)`.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ximler.graphql.engine.plan import Field, Selection

__all__ = ["Selected"]


class Selected:
    """The selection below one field."""

    __slots__ = ("_field", "_found", "_names")

    def __init__(self, field: "Field") -> None:
        self._field = field
        self._found: dict[tuple[str, ...], frozenset[str] | None] = {}
        self._names: frozenset[str] | None = None

    @property
    def names(self) -> frozenset[str]:
        """The fields of the value itself."""
        if self._names is None:
            self._names = frozenset(each.name for selection in _below(self._field) for each in selection.fields)
        return self._names

    def attributes(self, *paths: str) -> frozenset[str] | None:
        """The attributes read of the objects at these paths; without a path, of the value itself.

        None if a resolver below them does not declare `needs`.
        """
        if paths not in self._found:
            self._found[paths] = self._find(paths)
        return self._found[paths]

    def _find(self, paths: tuple[str, ...]) -> frozenset[str] | None:
        found: set[str] = set()
        for path in paths or ("",):
            selections = _below(self._field)
            for step in path.split(".") if path else ():
                inner = (field for selection in selections for field in selection.fields if field.name == step)
                selections = [selection for field in inner for selection in _below(field)]
            for field in (field for selection in selections for field in selection.fields):
                if field.resolver is None:
                    found.add(field.attribute)
                elif field.resolver.needs is None:
                    return None
                else:
                    found |= field.resolver.needs
        return frozenset(found)


def _below(field: "Field") -> "list[Selection]":
    children = field.children
    return [] if children is None else [children.of(name) for name in children.names]
