from typing import Any

import pytest

from ximler.core.errors import Invalid
from ximler.graphql.engine import Connection, Engine, page_size

QUERY = """
query($first: Int, $after: String) {
  users(first: $first, after: $after) {
    edges { cursor node { id } }
    nodes { id }
    pageInfo { hasNextPage hasPreviousPage startCursor endCursor }
  }
}
"""


async def test_a_page_is_a_relay_connection(lab: Any, engine: Engine) -> None:
    response = await engine.execute(QUERY, lab.Context(), variables={"first": 2, "after": "5"})
    assert response["data"]["users"] == {
        "edges": [{"cursor": "6", "node": {"id": "5"}}, {"cursor": "7", "node": {"id": "6"}}],
        "nodes": [{"id": "5"}, {"id": "6"}],
        "pageInfo": {"hasNextPage": True, "hasPreviousPage": False, "startCursor": "6", "endCursor": "7"},
    }


def test_an_empty_page_has_no_cursors(lab: Any) -> None:
    info = Connection(lab.Page([], [], False)).page_info
    assert (info.start_cursor, info.end_cursor, info.has_next_page) == (None, None, False)


async def test_the_default_page_size_is_twenty(lab: Any, engine: Engine) -> None:
    for variables in ({}, {"first": None}):
        response = await engine.execute(QUERY, lab.Context(), variables=variables)
        assert len(response["data"]["users"]["nodes"]) == 20


@pytest.mark.parametrize("first", [0, -1, 101])
async def test_a_page_has_between_one_and_a_hundred_items(lab: Any, engine: Engine, first: int) -> None:
    response = await engine.execute(QUERY, lab.Context(), variables={"first": first})
    [error] = response["errors"]
    assert error["message"] == f"first: must be between 1 and 100, got {first}"
    assert error["extensions"]["fields"] == {"first": f"must be between 1 and 100, got {first}"}


def test_page_size_accepts_its_range() -> None:
    assert (page_size(None), page_size(1), page_size(100)) == (20, 1, 100)
    with pytest.raises(Invalid):
        page_size(101)
