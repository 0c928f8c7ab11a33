"""No N+1: a batch resolver is called once per level for any shape of data."""

import asyncio
from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ximler.core.errors import Conflict, NotFound
from ximler.graphql.engine import Engine, Limits, Resolvers, build

NESTED = """
{
  allUsers {
    id
    subscription { status plan { name } }
    friends { id subscription { plan { name } } friends { fullName subscription { plan { id name } } } }
  }
}
"""


@pytest.mark.parametrize("wait_s", [None, 0, 0.002])
async def test_fifty_parents_cost_one_call_a_level(lab: Any, wait_s: float | None) -> None:
    engine = lab.make_engine(cost=10**9)
    ctx = lab.Context(wait_s=wait_s)
    response = await engine.execute(NESTED, ctx)
    assert "errors" not in response
    assert len(response["data"]["allUsers"]) == 50
    assert sorted(ctx.calls) == [
        ("Subscription.plan", 50),
        ("Subscription.plan", 100),
        ("Subscription.plan", 200),
        ("User.friends", 50),
        ("User.friends", 100),
        ("User.subscription", 50),
        ("User.subscription", 100),
        ("User.subscription", 200),
    ]


async def test_aliases_are_fields_of_their_own_with_their_own_arguments(lab: Any) -> None:
    engine = lab.make_engine(cost=10**9)
    ctx = lab.Context()
    response = await engine.execute("{ allUsers { one: friends(first: 1) { id } two: friends(first: 2) { id } } }", ctx)
    assert [len(response["data"]["allUsers"][7][alias]) for alias in ("one", "two")] == [1, 2]
    assert ctx.calls == [("User.friends", 50)] * 2


async def test_aliases_with_equal_arguments_are_one_call_in_which_each_parent_stands_once(lab: Any) -> None:
    ctx = lab.Context()
    aliases = " ".join(f"a{n}: friends(first: 1) {{ id }}" for n in range(30)) + " b: friends(first: $n) { id }"
    response = await lab.make_engine().execute(
        f"query ($n: Int) {{ allUsers {{ {aliases} }} }}", ctx, variables={"n": 1}
    )
    assert ctx.calls == [("User.friends", 50)]
    assert response["data"]["allUsers"][7] == {alias: [{"id": "700"}] for alias in [*(f"a{n}" for n in range(30)), "b"]}


async def test_only_arguments_that_are_equal_share_a_call() -> None:
    """In Python 1, 1.0 and True are equal; to a client they are not."""
    resolvers = Resolvers()
    calls = 0

    @resolvers.query("box")
    async def box(ctx: Any) -> Any:
        return {}

    @resolvers.field("Box", "same")
    async def same(ctx: Any, parents: list[Any], value: Any = "nothing") -> list[Any]:
        nonlocal calls
        calls += 1
        return [value for _ in parents]

    engine = Engine(build(["extend type Query { box: Box } type Box { same(value: JSON): JSON }"], [resolvers]))
    values = ["1", "true", "1.0", '"1"', "[1]", "{a: 1}", "{a: true}", "null", "[]", "{}"]
    fields = " ".join(f"a{n}: same(value: {value}) b{n}: same(value: {value})" for n, value in enumerate(values))
    found = (await engine.execute(f"{{ box {{ {fields} c: same }} }}", None))["data"]["box"]
    expected: list[Any] = [1, True, 1.0, "1", [1], {"a": 1}, {"a": True}, None, [], {}]
    assert [repr(found[f"a{n}"]) for n in range(len(values))] == [repr(value) for value in expected]
    assert [found[f"b{n}"] for n in range(len(values))] == expected
    assert found["c"] == "nothing"
    assert calls == len(values) + 1


async def test_a_request_has_only_so_many_calls(lab: Any) -> None:
    ctx = lab.Context()
    aliases = " ".join(f"a{n}: friends(first: {n}) {{ id }}" for n in range(1, 9))
    response = await lab.make_engine(calls=5).execute(f"{{ users(first: 1) {{ nodes {{ {aliases} }} }} }}", ctx)
    assert {error["extensions"]["code"] for error in response["errors"]} == {"QUERY_LIMIT_EXCEEDED"}
    assert "more than 5 calls" in response["errors"][0]["message"]
    assert len(ctx.calls) <= 5


async def test_a_fragment_in_several_places_shares_the_call_of_a_level(lab: Any, engine: Engine) -> None:
    ctx = lab.Context()
    query = """
    { users(first: 10) { nodes { ...Plan } edges { node { ...Plan } } } }
    fragment Plan on User { subscription { plan { name } } }
    """
    response = await engine.execute(query, ctx)
    assert response["data"]["users"]["nodes"][3] == response["data"]["users"]["edges"][3]["node"]
    assert ctx.calls == [("User.subscription", 10), ("Subscription.plan", 10)]


async def test_fields_of_the_same_level_are_asked_side_by_side() -> None:
    both = asyncio.Barrier(2)
    resolvers = Resolvers()

    @resolvers.query("box")
    async def box(ctx: Any) -> Any:
        return {}

    for name in ("a", "b"):

        @resolvers.field("Box", name)
        async def resolve(ctx: Any, parents: list[Any]) -> list[int]:
            await both.wait()
            return [1] * len(parents)

    engine = Engine(build(["extend type Query { box: Box } type Box { a: Int b: Int }"], [resolvers]))
    response = await asyncio.wait_for(engine.execute("{ box { a b } }", None), 5)
    assert response == {"data": {"box": {"a": 1, "b": 1}}}


@pytest.mark.slow
async def test_root_fields_of_a_query_run_side_by_side_and_of_a_mutation_in_turn(lab: Any, engine: Engine) -> None:
    ctx = lab.Context()
    fields = " ".join(f'i{n}: append(item: "{n}")' for n in range(5))
    response = await engine.execute(f"mutation {{ {fields} }}", ctx)
    assert response["data"]["i4"] == ["0", "1", "2", "3", "4"]

    both = asyncio.Barrier(2)
    resolvers = Resolvers()
    for name in ("a", "b"):

        @resolvers.query(name)
        async def resolve(ctx: Any) -> int:
            await both.wait()
            return 1

    concurrent = Engine(build(["extend type Query { a: Int b: Int }"], [resolvers]))
    assert await asyncio.wait_for(concurrent.execute("{ a b }", None), 5) == {"data": {"a": 1, "b": 1}}


def make_part(number: int, depth: int) -> Any:
    kids = [make_part(number, depth - 1) for _ in range(2)] if depth else []
    return SimpleNamespace(number=number, kids=kids)


def parts(answer: Any) -> tuple[Engine, Counter[str]]:
    """An engine over five parts whose `size` is computed by `answer(parents)`."""
    calls: Counter[str] = Counter()
    resolvers = Resolvers()

    @resolvers.query("parts")
    async def parts_(ctx: Any) -> list[Any]:
        return [make_part(n, depth=4) for n in range(5)]

    @resolvers.field("Part", "size")
    async def size(ctx: Any, parents: list[Any]) -> Any:
        calls["size"] += 1
        return answer(parents)

    @resolvers.field("Part", "inner")
    async def inner(ctx: Any, parents: list[Any]) -> Any:
        calls["inner"] += 1
        return parents

    sdl = "extend type Query { parts: [Part] } type Part { number: Int size: Int inner: Part kids: [Part] need: Int! }"
    return Engine(build([sdl], [resolvers]), limits=Limits(cost=10**9)), calls


async def test_one_parents_error_is_its_own() -> None:
    engine, calls = parts(lambda parents: [NotFound("gone") if p.number == 3 else p.number for p in parents])
    response = await engine.execute("{ parts { size inner { size } } }", None)
    assert [part["size"] for part in response["data"]["parts"]] == [0, 1, 2, None, 4]
    assert [error["path"] for error in response["errors"]] == [["parts", 3, "size"], ["parts", 3, "inner", "size"]]
    assert {error["extensions"]["code"] for error in response["errors"]} == {"NOT_FOUND"}
    assert calls == {"size": 2, "inner": 1}


async def test_a_failed_call_is_every_parents_error() -> None:
    def fail(parents: list[Any]) -> Any:
        raise Conflict("try again")

    response = await parts(fail)[0].execute("{ parts { number size } }", None)
    assert [part["number"] for part in response["data"]["parts"]] == [0, 1, 2, 3, 4]
    assert [error["path"] for error in response["errors"]] == [["parts", n, "size"] for n in range(5)]


@pytest.mark.parametrize("wrong", [[1, 2], None, "12345", {}, iter([1, 2, 3, 4, 5])])
async def test_an_answer_that_does_not_fit_the_parents_is_a_bug(wrong: Any) -> None:
    response = await parts(lambda parents: wrong)[0].execute("{ parts { size } }", None)
    assert len(response["errors"]) == 5
    assert {error["extensions"]["code"] for error in response["errors"]} == {"INTERNAL"}


async def test_a_nulled_parent_does_not_block_the_others() -> None:
    # `need` has no attribute and may not be null: each part falls out while its `inner` is being asked for.
    engine, _ = parts(lambda parents: [1] * len(parents))
    response = await asyncio.wait_for(engine.execute("{ parts { need inner { size } size } }", None), 5)
    assert response["data"] == {"parts": [None] * 5}
    assert [error["path"] for error in response["errors"]] == [["parts", n, "need"] for n in range(5)]


async def test_parents_at_different_depths_of_waiting_still_share_a_call() -> None:
    """Parts whose siblings wait for different things continue in one turn all the same."""
    engine, calls = parts(lambda parents: [p.number for p in parents])
    query = "{ parts { a: inner { size inner { size b: inner { size } } } size c: inner { ...S } } }"
    response = await engine.execute(query + " fragment S on Part { size inner { size } }", None)
    assert "errors" not in response
    assert calls == {"size": 4, "inner": 3}


async def test_a_fragment_at_many_depths_shares_its_calls_too() -> None:
    """Tasks deep inside lists begin to wait some turns later than those above; the answers wait for them."""
    engine, calls = parts(lambda parents: [p.number for p in parents])
    query = "{ parts { ...F kids { ...F kids { ...F kids { ...F kids { ...F } } } } } }"
    fragment = "fragment F on Part { number size inner { size inner { number size } } }"
    response = await engine.execute(f"{query} {fragment}", None)
    assert "errors" not in response
    assert calls == {"size": 3, "inner": 2}


async def test_a_cancelled_request_cancels_its_batches() -> None:
    started, ended = asyncio.Event(), asyncio.Event()
    resolvers = Resolvers()

    @resolvers.query("box")
    async def box(ctx: Any) -> Any:
        return {}

    @resolvers.field("Box", "size")
    async def size(ctx: Any, parents: list[Any]) -> list[int]:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        return []

    engine = Engine(build(["extend type Query { box: Box } type Box { size: Int }"], [resolvers]))
    task = asyncio.create_task(engine.execute("{ box { size } }", None))
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended.is_set()


TREES: st.SearchStrategy[Any] = st.recursive(
    st.just([]), lambda inner: st.lists(st.tuples(st.sampled_from(["one", "many"]), inner), max_size=3), max_leaves=12
)


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(TREES, st.lists(st.sampled_from([None, 0, 0.001]), min_size=1, max_size=5), st.booleans())
async def test_every_field_of_any_query_is_asked_once(tree: Any, waits: list[float | None], many: bool) -> None:
    """Of any shape, with answers at once, after a turn of the loop, or later;
    some parents fail, some are null."""
    calls: Counter[int] = Counter()
    resolvers = Resolvers()

    @resolvers.query("roots")
    async def roots(ctx: Any) -> list[Any]:
        return [SimpleNamespace(number=n) for n in range(5 if many else 1)]

    async def answer(parents: list[Any], tag: int, make: Any) -> list[Any]:
        calls[tag] += 1
        if (wait_s := waits[tag % len(waits)]) is not None:
            await asyncio.sleep(wait_s)
        outcomes = [*[make] * 5, lambda: None, lambda: NotFound("gone")]
        return [outcomes[(parent.number + tag) % 7]() for parent in parents]

    @resolvers.field("Part", "one")
    async def one(ctx: Any, parents: list[Any], tag: int) -> list[Any]:
        return await answer(parents, tag, lambda: SimpleNamespace(number=tag))

    @resolvers.field("Part", "many")
    async def many_(ctx: Any, parents: list[Any], tag: int) -> list[Any]:
        return await answer(parents, tag, lambda: [SimpleNamespace(number=tag + n) for n in range(3)])

    tags = iter(range(1000))

    def write(fields: Any) -> str:
        written = [(next(tags), name, write(inner)) for name, inner in fields]
        return " ".join(["number", *(f"f{tag}: {name}(tag: {tag}) {{ {inner} }}" for tag, name, inner in written)])

    sdl = """
    extend type Query { roots: [Part] }
    type Part { number: Int one(tag: Int!): Part many(tag: Int!): [Part] }
    """
    engine = Engine(build([sdl], [resolvers]), limits=Limits(cost=10**12, depth=100))
    response = await engine.execute(f"{{ roots {{ {write(tree)} }} }}", None)
    assert len(response["data"]["roots"]) == (5 if many else 1)
    assert set(calls.values()) <= {1}
    assert bool(calls) is bool(tree)


async def test_a_request_that_is_cancelled_before_its_batch_began_asks_for_nothing(lab: Any) -> None:
    resolvers = Resolvers()
    asked: list[str] = []

    @resolvers.query("box")
    async def box(ctx: Any) -> Any:
        asyncio.get_running_loop().call_soon(task.cancel)
        return {}

    @resolvers.field("Box", "size")
    async def size(ctx: Any, parents: list[Any]) -> list[int]:
        asked.append("size")
        await asyncio.sleep(0)
        asked.append("size again")
        return [1]

    engine = Engine(build(["extend type Query { box: Box } type Box { size: Int }"], [resolvers]))
    task = asyncio.create_task(engine.execute("{ box { size } }", None))
    with pytest.raises(asyncio.CancelledError):
        await task
    for _ in range(10):
        await asyncio.sleep(0)
    assert "size again" not in asked


async def test_a_root_field_that_fails_does_not_cancel_its_siblings() -> None:
    """A cancelled database call costs its connection."""
    ended: list[str] = []
    resolvers = Resolvers()

    @resolvers.query("bad")
    async def bad(ctx: Any) -> int:
        raise NotFound("gone")

    @resolvers.query("slow")
    async def slow(ctx: Any) -> int:
        await asyncio.sleep(0.01)
        ended.append("slow")
        return 1

    engine = Engine(build(["extend type Query { bad: Int! slow: Int! }"], [resolvers]))
    response = await engine.execute("{ slow bad }", None)
    assert response["data"] is None
    assert [error["path"] for error in response["errors"]] == [["bad"]]
    assert ended == ["slow"]


async def test_nothing_of_a_request_runs_on_after_its_answer() -> None:
    ended: list[str] = []
    resolvers = Resolvers()

    @resolvers.query("box")
    async def box(ctx: Any) -> Any:
        return SimpleNamespace()

    @resolvers.query("slow")
    async def slow(ctx: Any, n: int) -> int:
        await asyncio.sleep(0.01)
        ended.append("slow")
        return n

    @resolvers.field("Box", "size")
    async def size(ctx: Any, parents: list[Any]) -> list[int]:
        await asyncio.sleep(0.01)
        ended.append("size")
        return [1]

    sdl = "extend type Query { box: Box slow(n: Int!): Int! } type Box { size: Int need: Int! }"
    engine = Engine(build([sdl], [resolvers]))
    response = await engine.execute("{ box { size need } }", None)
    assert response["data"] == {"box": None}
    assert ended == ["size"]
    query = "query($n: Int = 1) { slow(n: 1) other: slow(n: $n) }"
    response = await engine.execute(query, None, variables={"n": None})
    assert response["data"] is None
    assert ended == ["size", "slow"]


async def test_requests_do_not_share_batches(lab: Any, engine: Engine) -> None:
    contexts = [lab.Context() for _ in range(20)]
    query = "{ users(first: 3) { nodes { subscription { plan { name } } } } }"
    await asyncio.gather(*(engine.execute(query, ctx) for ctx in contexts))
    assert all(ctx.calls == [("User.subscription", 3), ("Subscription.plan", 3)] for ctx in contexts)
