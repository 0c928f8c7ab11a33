"""Edge cases of executors, each run three times: plans are interpreted first and then compiled."""

import asyncio
import math
from types import SimpleNamespace
from typing import Any

import pytest

from ximler.core.errors import NotFound
from ximler.graphql.engine import Engine, Resolvers, build

SDL = """
extend type Query {
  n(x: Int = 3): JSON
  nn(x: Int! = 3): JSON
  l(x: [Int]): JSON
  ll(x: [[Int]]): JSON
  echo(i: In): JSON
  o: O
  hard: O!
  grid: [[Int!]]
  many: [Pair]
}
extend type Mutation { step(n: Int!): Int stepHard(n: Int!): Int! }
input In { a: Int = 5 n: Int }
type O { name: String x: Int required: Int! also: Int! o: O slow: Int! slower: Int! list: [String] fine: Float inner: O! }
type Pair { o: O! id: ID! }
"""


class Data:
    """The results of a test's resolvers, and the calls that they received."""

    def __init__(self) -> None:
        self.given: dict[str, Any] = {}
        self.steps: list[int] = []


def make(data: Data) -> Engine:
    resolvers = Resolvers()
    for name in ("n", "nn", "l", "ll"):

        @resolvers.query(name)
        async def argument(ctx: Any, x: Any = "absent") -> Any:
            return {"x": x}

    @resolvers.query("echo")
    async def echo(ctx: Any, i: Any = "absent") -> Any:
        return i

    for name in ("o", "hard", "grid", "many"):

        def give(name: str = name) -> Any:
            async def root(ctx: Any) -> Any:
                return data.given[name]

            return root

        resolvers.query(name)(give())

    async def step(ctx: Any, n: int) -> int | None:
        await asyncio.sleep(0)
        data.steps.append(n)
        if n == 13:
            raise NotFound("thirteen")
        return None if n == 0 else n

    resolvers.mutation("step")(step)
    resolvers.mutation("stepHard")(step)

    @resolvers.field("O", "slow")
    async def slow(ctx: Any, parents: list[Any]) -> list[Any]:
        await asyncio.sleep(0)
        return [NotFound("slow") for _ in parents]

    @resolvers.field("O", "slower")
    async def slower(ctx: Any, parents: list[Any]) -> list[Any]:
        for _ in range(5):
            await asyncio.sleep(0)
        return [NotFound("slower") for _ in parents]

    return Engine(build([SDL], [resolvers]))


@pytest.fixture
def data() -> Data:
    return Data()


@pytest.fixture
def engine(data: Data) -> Engine:
    return make(data)


async def ask(engine: Engine, query: str, **variables: Any) -> Any:
    answers = [await engine.execute(query, None, variables=variables) for _ in range(3)]
    assert repr(answers[0]) == repr(answers[1]) == repr(answers[2])
    return answers[0]


async def value(engine: Engine, query: str, **variables: Any) -> Any:
    response = await ask(engine, query, **variables)
    assert "errors" not in response, response
    [found] = response["data"].values()
    return found


def paths(response: Any) -> list[Any]:
    return [error.get("path") for error in response["errors"]]


async def test_an_absent_variable_takes_the_default_and_null_is_null(engine: Engine) -> None:
    query = "query ($x: Int) { n(x: $x) }"
    assert await value(engine, query) == {"x": 3}
    assert await value(engine, query, x=None) == {"x": None}
    assert await value(engine, query, x=4) == {"x": 4}


async def test_null_for_a_required_argument_is_its_fields_error(engine: Engine) -> None:
    query = "query ($x: Int = 1) { nn(x: $x) n }"
    response = await ask(engine, query, x=None)
    assert response["data"] == {"nn": None, "n": {"x": 3}}
    assert paths(response) == [["nn"]]
    assert response["errors"][0]["extensions"]["code"] == "BAD_USER_INPUT"
    assert (await ask(engine, query))["data"]["nn"] == {"x": 1}


async def test_absent_variables_leave_an_input_objects_fields_out(engine: Engine) -> None:
    query = "query ($a: Int, $n: Int) { echo(i: {a: $a, n: $n}) }"
    assert await value(engine, query) == {"a": 5}
    assert await value(engine, query, a=None, n=None) == {"a": None, "n": None}
    assert await value(engine, query, n=2) == {"a": 5, "n": 2}


async def test_values_become_lists_where_lists_belong(engine: Engine) -> None:
    assert await value(engine, "{ l(x: 1) }") == {"x": [1]}
    assert await value(engine, "{ ll(x: [1, 2]) }") == {"x": [[1], [2]]}
    assert await value(engine, "query ($e: Int) { l(x: [1, $e]) }") == {"x": [1, None]}
    assert await value(engine, "query ($x: [Int]) { l(x: $x) }", x=1) == {"x": [1]}
    assert await value(engine, "query ($x: [[Int]]) { ll(x: $x) }", x=[1, [2]]) == {"x": [[1], [2]]}


async def test_a_null_condition_is_an_error_with_its_location(engine: Engine, data: Data) -> None:
    response = await ask(engine, "query ($s: Boolean = true) { n @skip(if: $s) }", s=None)
    assert response["data"] is None
    data.given["o"] = SimpleNamespace(name="O")
    response = await ask(engine, "query ($s: Boolean = true) { n o { name @skip(if: $s) } }", s=None)
    assert response["data"] == {"n": {"x": 3}, "o": None}
    assert paths(response) == [["o"]]


@pytest.mark.parametrize("include", [True, False])
async def test_one_fragment_under_two_conditions(engine: Engine, data: Data, include: bool) -> None:
    data.given["o"] = SimpleNamespace(name="O", x=1)
    query = (
        "query ($i: Boolean!) { p: o @skip(if: $i) { ...F } q: o @include(if: $i) { ...F } } fragment F on O { name x }"
    )
    assert (await ask(engine, query, i=include))["data"] == {"q" if include else "p": {"name": "O", "x": 1}}


async def test_a_field_that_is_selected_again_under_a_condition(engine: Engine, data: Data) -> None:
    data.given["o"] = SimpleNamespace(name="O", x=1)
    query = "query ($i: Boolean!) { o { x } o @include(if: $i) { name } }"
    assert (await ask(engine, query, i=True))["data"] == {"o": {"x": 1, "name": "O"}}
    assert (await ask(engine, query, i=False))["data"] == {"o": {"x": 1}}


async def test_merged_fields_stand_where_they_were_selected_first(engine: Engine, data: Data) -> None:
    data.given["o"] = SimpleNamespace(name="O", x=1, o=SimpleNamespace(name="I", x=2))
    query = """
    query ($i: Boolean!) { o { x @include(if: $i) ...F name o { name } x o { x ... { name } } } }
    fragment F on O { o { x } name }
    """
    included, left_out = [(await ask(engine, query, i=i))["data"]["o"] for i in (True, False)]
    assert list(included) == ["x", "o", "name"]
    assert list(left_out) == ["o", "name", "x"]
    assert list(included["o"]) == ["x", "name"]


@pytest.mark.parametrize(
    ("fields", "path"),
    [("required also", "required"), ("also required", "also"), ("slow slower", "slow"), ("slower slow", "slow")],
)
async def test_of_two_that_fail_under_one_parent_the_earlier_is_the_error(
    engine: Engine, data: Data, fields: str, path: str
) -> None:
    data.given["o"] = SimpleNamespace(name="O", required=None, also=None)
    response = await ask(engine, f"{{ o {{ name {fields} }} }}")
    assert response["data"] == {"o": None}
    assert paths(response) == [["o", path]]


async def test_null_goes_up_to_the_nearest_place_that_may_be_null(engine: Engine, data: Data) -> None:
    leaf = SimpleNamespace(name="leaf", required=None)
    data.given["o"] = SimpleNamespace(o=SimpleNamespace(inner=SimpleNamespace(inner=leaf)))
    data.given["hard"] = SimpleNamespace(inner=leaf)
    data.given["many"] = [SimpleNamespace(id=n, o=leaf) for n in range(2)]
    response = await ask(engine, "{ o { o { inner { inner { name required } } } } }")
    assert response["data"] == {"o": {"o": None}}
    assert paths(response) == [["o", "o", "inner", "inner", "required"]]
    assert (await ask(engine, "{ n hard { inner { required } } }"))["data"] is None
    for field in ("required", "slow"):
        response = await ask(engine, f"{{ many {{ id o {{ {field} }} }} }}")
        assert response["data"] == {"many": [None, None]}
        assert paths(response) == [["many", n, "o", field] for n in range(2)]


async def test_an_item_that_may_not_be_null_takes_its_list_with_it(engine: Engine, data: Data) -> None:
    data.given["grid"] = [[1, None], [2]]
    response = await ask(engine, "{ grid }")
    assert response["data"] == {"grid": [None, [2]]}
    assert paths(response) == [["grid", 0, 1]]


async def test_mutations_run_in_turn_and_none_after_the_answer_is_null(engine: Engine, data: Data) -> None:
    query = "mutation { a: step(n: 1) b: step(n: 13) c: step(n: 3) }"
    response = await engine.execute(query, None)
    assert response["data"] == {"a": 1, "b": None, "c": 3}
    assert data.steps == [1, 13, 3]
    for wrong in (13, 0):
        data.steps.clear()
        response = await engine.execute(f"mutation {{ a: step(n: 1) b: stepHard(n: {wrong}) c: step(n: 3) }}", None)
        assert response["data"] is None
        assert paths(response) == [["b"]]
        assert data.steps == [1, wrong]


@pytest.mark.parametrize(
    ("attribute", "given", "expected"),
    [
        ("x", True, 1),
        ("x", 1.0, 1),
        ("x", "7", 7),
        ("x", 2**31, NotFound),
        ("x", 1.5, NotFound),
        ("fine", math.nan, NotFound),
        ("fine", math.inf, NotFound),
        ("fine", True, 1),
        ("list", "text", NotFound),
        ("list", {"a": 1}, NotFound),
        ("list", (f"item {n}" for n in []), []),
        ("list", ("a", "b"), ["a", "b"]),
        ("name", NotFound("gone"), NotFound),
        ("name", 7, "7"),
        ("name", ["x"], NotFound),
        ("o", 7, {"name": None}),
        ("o", [], {"name": None}),
    ],
)
async def test_values_of_the_wrong_kind(engine: Engine, data: Data, attribute: str, given: Any, expected: Any) -> None:
    data.given["o"] = SimpleNamespace(**{attribute: given})
    response = await ask(engine, f"{{ o {{ {attribute} {'{ name }' if attribute == 'o' else ''} }} }}")
    if expected is NotFound:
        assert response["data"] == {"o": {attribute: None}}
        assert paths(response) == [["o", attribute]]
    else:
        assert response["data"] == {"o": {attribute: expected}}


async def test_an_error_in_an_objects_place_is_no_object(data: Data) -> None:
    """An error has attributes as well, among them such as a type's fields are called."""
    resolvers = Resolvers()

    @resolvers.query("all")
    async def all_(ctx: Any) -> list[Any]:
        return [SimpleNamespace(message="fine"), NotFound("secret")]

    engine = Engine(build(["extend type Query { all: [Note] } type Note { message: String }"], [resolvers]))
    response = await ask(engine, "{ all { message } }")
    assert response["data"] == {"all": [{"message": "fine"}, None]}
    assert paths(response) == [["all", 1]]


async def test_two_operations_of_one_document_have_defaults_of_their_own(engine: Engine) -> None:
    query = "query A($x: Int = 1) { n(x: $x) } query B($x: Int = 2) { n(x: $x) }"
    for _ in range(3):
        for name, expected in (("A", 1), ("B", 2)):
            assert (await engine.execute(query, None, operation_name=name))["data"] == {"n": {"x": expected}}


async def test_a_resolver_cannot_change_the_arguments_of_another(data: Data) -> None:
    resolvers = Resolvers()

    @resolvers.query("push")
    async def push(ctx: Any, to: Any) -> Any:
        to.append(1)
        return to

    engine = Engine(build(["extend type Query { push(to: [Int] = [0]): [Int] }"], [resolvers]))
    for query in ("{ push }", "{ push(to: [0]) }", "query ($to: [Int] = [0]) { push(to: $to) }"):
        assert await value(engine, query) == [0, 1]


async def test_aliases_are_data(engine: Engine, data: Data) -> None:
    """Names of Python's own, and of the compiled code's."""
    data.given["o"] = SimpleNamespace(name="O", x=1)
    names = ["None", "class", "asked", "d", "o", "c1", "row1", "__class__", "__import__", "f0", "_", "self"]
    query = "{ o { " + " ".join(f"{name}: name" for name in names) + " } }"
    assert await value(engine, query) == dict.fromkeys(names, "O")
