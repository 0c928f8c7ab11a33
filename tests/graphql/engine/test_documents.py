from typing import Any

import pytest

from ximler.graphql.engine import Engine, Limits
from ximler.graphql.engine.documents import Documents
from ximler.graphql.engine.errors import RequestRefused


def documents(engine: Engine, **limits: int) -> Documents:
    return Documents(engine.schema, Limits(**limits))


def test_a_text_is_read_once(engine: Engine) -> None:
    kept = documents(engine)
    assert kept.get("{ hello }") is kept.get("{ hello }")
    assert kept.get("{ hello  }") is not kept.get("{ hello }")


def test_the_least_recently_used_leaves_first(engine: Engine) -> None:
    kept = documents(engine, cached_documents=2)
    first, second = kept.get("{ a: hello }"), kept.get("{ b: hello }")
    assert kept.get("{ a: hello }") is first
    kept.get("{ c: hello }")
    assert kept.get("{ a: hello }") is first
    assert kept.get("{ b: hello }") is not second


def test_kept_text_is_bounded_as_well(engine: Engine) -> None:
    kept = documents(engine, cached_text=1000, cached_text_each=600)
    texts = [f"{{ hello }} #{n}" + "x" * 300 for n in range(10)]
    for text in texts:
        kept.get(text)
    assert kept._kept_text == sum(map(len, kept._kept)) <= 1000
    assert list(kept._kept) == texts[-3:]
    long = "{ hello } #" + "x" * 600
    assert kept.get(long) is not kept.get(long)


@pytest.mark.parametrize("text", ["{ hello", "{ nope }", "{ allUsers { " + "id " * 600 + "} }"])
def test_rejected_documents_are_not_cached(engine: Engine, text: str) -> None:
    kept = documents(engine)
    with pytest.raises(RequestRefused):
        kept.get(text)
    assert not kept._kept


async def test_variables_belong_to_the_request_not_to_the_document(lab: Any, engine: Engine) -> None:
    query = "query($name: String!) { hello(name: $name) }"
    for name in ("Ada", "Bob"):
        response = await engine.execute(query, lab.Context(), variables={"name": name})
        assert response == {"data": {"hello": f"Hello {name}"}}
