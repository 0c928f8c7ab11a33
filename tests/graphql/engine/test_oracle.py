"""Corner cases of execution, compared with graphql-core on the same values: data, and the paths of errors."""

import inspect
import math
from types import SimpleNamespace
from typing import Any

import pytest
from graphql import build_schema, execute, parse, validate
from tests.graphql.engine.test_corners import SDL, Data, make

# fmt: off
SCALARS: list[Any] = [True, 1.0, 1.5, "1", math.nan, [1], {}, 2**31]
INPUTS: list[Any] = [{}, {"a": None}, [], "x", {"b": 1}, {"a": "1"}, [{}]]
BOTH: Any = ({"i": True}, {"i": False})
FRAGMENT = "fragment F on O { name x }"
VARIABLES: dict[str, tuple[Any, ...]] = {
    "query($x: Int) { n(x: $x) }": ({}, {"x": None}, *({"x": given} for given in SCALARS)),
    "query($x: Int) { nn(x: $x) }": ({}, {"x": None}),
    "query($x: Int = null) { nn(x: $x) }": ({},),
    "query($x: Int = 7) { nn(x: $x) }": ({}, {"x": None}),
    "query($a: Int, $n: Int) { echo(i: {a: $a, n: $n}) }": ({}, {"n": None}, {"a": None}),
    "query($i: In) { echo(i: $i) }": (
        {}, {"i": None}, *({"i": given} for given in INPUTS),
    ),
    "query($i: In = {n: 1}) { echo(i: $i) }": ({},),
    "{ l(x: 1) ll(x: [1, 2]) }": ({},),
    "{ ll(x: 1) l(x: null) again: ll(x: [null, [null]]) }": ({},),
    "query($e: Int, $f: [Int]) { l(x: [1, $e]) ll(x: [[1, $e], $f]) }": ({}, {"f": 1}),
    "query($e: [Int]) { l(x: $e) }": ({"e": 1},),
    "query($e: [[Int]]) { ll(x: $e) }": ({"e": [1, [2], None]},),
    "query($s: Boolean = false) { o @skip(if: $s) { name } }": ({}, {"s": None}),
    "query($s: Boolean = true) { o { o { ... @skip(if: $s) { name } x } } n }": ({}, {"s": None}),
    "query($i: Boolean!) { p: o @skip(if: $i) { ...F } q: o @include(if: $i) { ...F } }" + FRAGMENT: BOTH,
    "query($i: Boolean!) { o { ...F @skip(if: $i) ...F @include(if: $i) } }" + FRAGMENT: BOTH,
    "query($i: Boolean!) { o { ...F @include(if: $i) ...G } } fragment G on O { o { ...F } ...F }" + FRAGMENT: BOTH,
    "query($i: Boolean!) { o { x } o @include(if: $i) { name } }": BOTH,
    "query($i: Boolean!) { o { o { x } o @include(if: $i) { name } } o { o { required } } }": BOTH,
    "{ o { x o { name } name } o { list o { x } fine __typename } __typename }": ({},),
}
USUAL: dict[str, Any] = {
    "name": "n", "x": 1, "required": 1, "also": 2, "list": ["a"], "fine": 1.5, "o": None, "inner": None,
}


def o(**values: Any) -> Any:
    return SimpleNamespace(**{**USUAL, **values})


GRIDS: list[Any] = [
    [[1, None], [2]], [None, [1]], [[1], [True]], [["a"], [2]], [[1.0], [2.5]], [[2**31], [1]], "no", [[1], "no"],
    [[1], 5], [(1, 2), [3]], [[], []], {"a": 1},
]
LEAVES: dict[str, list[Any]] = {
    "x": [True, 1.0, 1.5, "5", "", -(2**31) - 1],
    "fine": [math.nan, math.inf, 1, True, "1.5"],
    "name": [1, True, 1.5, {}],
    "list": ["ab", ("a", "b"), [None, 1], 5],
}
MANY = [o(o=o(required=None), id="1"), o(o=o(), id=None), None, o(o=o(), id="3")]
VALUES: list[tuple[str, str, Any]] = [
    ("{ o { required also } }", "o", o(required=None, also=None)),
    ("{ o { also required } }", "o", o(required=None, also=None)),
    ("{ o { o { also required } x } }", "o", o(o=o(required=None, also=None))),
    ("{ hard { required also } n }", "hard", o(required=None, also=None)),
    ("{ many { o { required also } id } n }", "many", MANY),
    ("{ a: o { x } b: o { x } }", "o", ValueError("no")),
    ("{ hard { x } n }", "hard", ValueError("no")),
    *[("{ grid }", "grid", grid) for grid in GRIDS],
    *[("{ o { x fine name list } }", "o", o(**{name: value})) for name, values in LEAVES.items() for value in values],
]
# fmt: on


CORE = build_schema(f"scalar JSON\ntype Query\ntype Mutation\n{SDL}")
DATA = Data()
ENGINE = make(DATA)


async def compare(text: str, variables: Any, given: dict[str, Any]) -> None:
    assert not validate(CORE, parse(text)), text
    theirs = execute(CORE, parse(text), root_value=roots(given), variable_values=variables)
    assert not inspect.isawaitable(theirs)
    refused = theirs.data is None and all(error.path is None for error in theirs.errors or ())
    DATA.given = given
    for _ in range(3):  # interpreted, then compiled
        ours = await ENGINE.execute(text, None, variables=variables)
        assert repr(ours.get("data")) == repr(theirs.data)
        paths = [str(error.get("path")) for error in ours.get("errors", [])]
        assert bool(paths) if refused else sorted(paths) == sorted(str(error.path) for error in theirs.errors or ())


def roots(given: dict[str, Any]) -> Any:
    """The resolvers of `make`, for graphql-core."""

    def root(name: str) -> Any:
        def resolve(_: Any) -> Any:
            if isinstance(given.get(name), Exception):
                raise given[name]
            return given.get(name)

        return resolve

    def wrap(_: Any, x: Any = "absent") -> Any:
        return {"x": x}

    def echo(_: Any, i: Any = "absent") -> Any:
        return i

    found = {name: root(name) for name in ("o", "hard", "grid", "many")}
    return SimpleNamespace(**found, **dict.fromkeys(("n", "nn", "l", "ll"), wrap), echo=echo)


@pytest.mark.parametrize("text", VARIABLES)
async def test_variables_and_conditions_mean_what_they_mean_to_graphql_core(text: str) -> None:
    for variables in VARIABLES[text]:
        await compare(text, variables, {"o": o(o=o())})


@pytest.mark.parametrize(("text", "name", "value"), VALUES)
async def test_values_are_completed_as_graphql_core_completes_them(text: str, name: str, value: Any) -> None:
    await compare(text, {}, {name: value})
