"""Requests are cheap before they are authenticated."""

import time
from typing import Any

import msgspec
import pytest

from ximler.graphql.engine import Engine, Resolvers, build
from ximler.graphql.engine.errors import RequestRefused

SDL = """
extend type Query {
  strings(p: [String!]!): Int
  grid(p: [[Int]]): Int
  input(p: In): Int
  inputs(p: [In!]): Int
  json(p: JSON): Int
}
input In { name: String id: ID at: DateTime deep: In list: [In!] json: JSON kind: Kind }
enum Kind { ROUND }
"""
MB = 1_000_000


@pytest.fixture(scope="module")
def engine() -> Engine:
    resolvers = Resolvers()
    for name in ("strings", "grid", "input", "inputs", "json"):

        @resolvers.query(name)
        async def count(ctx: Any, p: Any = None) -> int:
            return len(p) if isinstance(p, list | dict) else 0

    return Engine(build([SDL], [resolvers]))


def many(item: str, size: int = MB) -> str:
    return "[" + ",".join([item] * (size // (len(item) + 1))) + "]"


def nested(open_: str, close: str, levels: int) -> str:
    return open_ * levels + "1" + close * levels


HOSTILE = {
    "strings": ("[String!]!", "strings", many('""')),
    "numbers for strings": ("[String!]!", "strings", many("1")),
    "lists": ("[[Int]]", "grid", many("[]")),
    "lists of lists": ("[[Int]]", "grid", many("[1,2,3]")),
    "deep lists": ("[[Int]]", "grid", nested("[", "]", 900)),
    "objects": ("[In!]", "inputs", many("{}")),
    "objects in objects": ("In", "input", '{"list":' + many('{"deep":{"list":[{}]}}') + "}"),
    "deep objects": ("In", "input", nested('{"deep":', "}", 900)),
    "unknown fields": ("In", "input", "{" + ",".join(f'"n{n}":1' for n in range(MB // 10)) + "}"),
    "a long unknown field": ("In", "input", '{"' + "name" * (MB // 4) + '":1}'),
    "a long enum": ("In", "input", '{"kind":"' + "ROUND" * (MB // 5) + '"}'),
    "a long time": ("In", "input", '{"at":"' + "2026-01-31T" * (MB // 12) + '"}'),
    "long values of the wrong kind": ("[Int]", "grid", many('"' + "x" * 5000 + '"')),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_large_variables_are_cheap_to_reject(engine: Engine, name: str) -> None:
    type_, field, text = HOSTILE[name]
    variables = msgspec.json.decode(f'{{"p":{text}}}')
    query = f"query ($p: {type_}) {{ {field}(p: $p) }}"
    if name == "long values of the wrong kind":
        query = "query ($p: [[Int]]) { grid(p: $p) }"
    engine.prepare("{ json }")
    took = []
    for _ in range(3):
        began = time.process_time()
        with pytest.raises(RequestRefused) as refused:
            engine.prepare(query, variables=variables)
        took.append(time.process_time() - began)
        assert all(len(error["message"]) <= 500 for error in refused.value.errors)
    assert min(took) < 0.05


def test_values_are_counted_over_all_variables(engine: Engine) -> None:
    query = "query ($a: [String!]!, $b: [In!]) { strings(p: $a) inputs(p: $b) }"
    few = {"a": [""] * 9_000, "b": [{"name": "x"}] * 5_000}
    engine.prepare(query, variables=few)
    with pytest.raises(RequestRefused) as refused:
        engine.prepare(query, variables={**few, "a": [""] * 11_000})
    [error] = refused.value.errors
    assert error["extensions"]["code"] == "QUERY_LIMIT_EXCEEDED"
    assert error["extensions"]["limit"] == "number of input values"
    assert error["extensions"]["value"] > error["extensions"]["maximum"] == 20_000


async def test_a_json_value_counts_as_one_input_value(engine: Engine) -> None:
    query = "query ($p: JSON, $i: In) { json(p: $p) input(p: $i) }"
    large = {"p": list(range(100_000)), "i": {"json": {"a": list(range(100_000))}}}
    assert (await engine.execute(query, None, variables=large))["data"] == {"json": 100_000, "input": 1}
