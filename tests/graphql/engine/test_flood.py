"""The cache of query texts is bounded, and a text that is sent once is cheap."""

import gc
import time
import tracemalloc
from typing import Any

import graphql
import pytest

from ximler.graphql.engine import Engine

QUERY = """
query Q{n}($first: Int, $yes: Boolean!) {{
  a{n}: users(first: $first) {{ nodes {{ id fullName createdAt ...F subscription {{ status plan {{ name }} }} }} }}
}}
fragment F on User {{ friends(first: 1) {{ b{n}: id c: fullName @include(if: $yes) }} }}
"""


async def flood(engine: Engine, ctx: Any, numbers: range) -> None:
    for n in numbers:
        for yes in (True, False, True):
            response = await engine.execute(QUERY.format(n=n), ctx, variables={"first": 1, "yes": yes})
            assert "errors" not in response


@pytest.mark.slow
async def test_distinct_texts_without_end_keep_memory_bounded(lab: Any) -> None:
    engine = lab.make_engine(cached_documents=15)
    await flood(engine, lab.Context(), range(5))
    gc.collect()
    tracemalloc.start()
    try:
        await flood(engine, lab.Context(), range(5, 25))
        gc.collect()
        before, _ = tracemalloc.get_traced_memory()
        await flood(engine, lab.Context(), range(25, 75))
        gc.collect()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # Fifteen texts are kept before and after, with their plans and classes: fifty more leave nothing behind.
    assert before < 15 * 150_000
    assert after - before < 15 * 10_000


async def test_plans_of_one_text_are_bounded_too(lab: Any) -> None:
    engine = lab.make_engine()
    names = [f"v{n}" for n in range(10)]
    query = (
        f"query ({' '.join(f'${name}: Boolean!' for name in names)}) {{ "
        + " ".join(f"{name}: hello @include(if: ${name})" for name in names)
        + " }"
    )
    for bits in range(200):
        variables = {name: bool(bits >> n & 1) for n, name in enumerate(names)}
        expected = {name: "Hello you" for name in names if variables[name]}
        assert (await engine.execute(query, lab.Context(), variables=variables))["data"] == expected
    operation = engine._documents.get(query).get_operation(None)
    assert len(operation._plans) <= 8


@pytest.mark.slow
async def test_a_text_that_comes_once_costs_little_beside_its_validation(lab: Any) -> None:
    """Parsing and validating it is graphql-core's;
    the rest, execution included, takes less than half of the whole."""
    engine = lab.make_engine()
    await flood(engine, lab.Context(), range(1))
    whole, validation = [], []
    for n in range(1, 30):
        text = QUERY.format(n=n)
        began = time.process_time()
        assert not graphql.validate(engine.schema.core, graphql.parse(text))
        between = time.process_time()
        await engine.execute(text, lab.Context(), variables={"first": 20, "yes": True})
        whole.append(time.process_time() - between)
        validation.append(between - began)
    assert min(whole) < 2 * min(validation)
