import contextlib
import time
from typing import Any

import pytest
from graphql import build_schema, get_introspection_query, parse
from hypothesis import given, settings
from hypothesis import strategies as st

from ximler.graphql.engine import Engine, Resolvers, SchemaError, build
from ximler.graphql.engine.errors import RequestRefused
from ximler.graphql.engine.introspection import Introspection


async def refusal(engine: Engine, query: str, **variables: Any) -> dict[str, Any]:
    response = await engine.execute(query, None, variables=variables)
    assert "data" not in response
    [error] = response["errors"]
    assert error["extensions"]["code"] == "QUERY_LIMIT_EXCEEDED", error
    limit, value, maximum = (error["extensions"][key] for key in ("limit", "value", "maximum"))
    assert value > maximum
    assert limit in error["message"]
    assert f"{maximum:,}" in error["message"]
    return dict(error["extensions"])


def nested(levels: int) -> str:
    return "{ allUsers " + "{ friends(first: 1) " * (levels - 2) + "{ id }" + " }" * (levels - 2) + " }"


async def test_depth(lab: Any) -> None:
    engine = lab.make_engine(depth=5, cost=10**9)
    assert "errors" not in await engine.execute(nested(5), lab.Context())
    assert await refusal(engine, nested(6)) == {
        "code": "QUERY_LIMIT_EXCEEDED",
        "limit": "depth",
        "value": 6,
        "maximum": 5,
    }


async def test_depth_sees_through_fragments(lab: Any) -> None:
    engine = lab.make_engine(depth=5, cost=10**9)
    query = """
    { allUsers { ...A } }
    fragment A on User { friends { friends { ...B } } }
    fragment B on User { ... on User { %s } }
    """
    assert "errors" not in await engine.execute(query % "friends { id }", lab.Context())
    assert (await refusal(engine, query % "friends { friends { id } }"))["value"] == 6


async def test_breadth_counts_aliases_and_unfolded_fragments(lab: Any) -> None:
    engine = lab.make_engine(breadth=40, cost=10**9)
    aliases = "{ allUsers { %s } }"
    assert "errors" not in await engine.execute(aliases % " ".join(f"a{n}: id" for n in range(39)), lab.Context())
    assert (await refusal(engine, aliases % " ".join(f"a{n}: id" for n in range(40))))["value"] == 41
    fragments = "{ allUsers { %s } } fragment F on User { id fullName }"
    spreads = " ".join("friends { ...F }" for _ in range(13))
    assert "errors" not in await engine.execute(fragments % spreads, lab.Context())
    assert (await refusal(engine, fragments % (spreads + " friends { ...F }")))["limit"] == "breadth"


async def test_breadth_counts_every_operation_and_fragment_of_the_document(lab: Any) -> None:
    engine = lab.make_engine(breadth=40)
    query = " ".join(f"query Q{n} {{ {' '.join(f'a{m}: hello' for m in range(9))} }}" for n in range(5))
    assert (await refusal(engine, query))["value"] == 45
    assert (await refusal(engine, "{ hello } fragment Unused on User { " + "id " * 50 + "}"))["value"] == 51


def bomb(levels: int, leaf: str) -> str:
    chain = " ".join(f"fragment F{n} on User {{ ...F{n + 1} ...F{n + 1} }}" for n in range(levels))
    return f"{{ allUsers {{ ...F0 }} }} {chain} fragment F{levels} on User {{ {leaf} }}"


@pytest.mark.parametrize("leaf", ["id", "...Unknown", "__typename", "", "... on User { id }"])
async def test_fragment_bombs_are_refused_at_once(engine: Engine, leaf: str) -> None:
    start = time.process_time()
    [error] = (await engine.execute(bomb(150, leaf), None))["errors"]
    assert time.process_time() - start < 0.5
    assert error["extensions"]["code"] in ("QUERY_LIMIT_EXCEEDED", "GRAPHQL_PARSE_FAILED")
    if error["extensions"]["code"] == "QUERY_LIMIT_EXCEEDED":
        assert "more than 10^15" in error["message"]


async def test_circles_of_fragments_are_named_not_followed(engine: Engine) -> None:
    everyone = " ".join(f"...F{n}" for n in range(20))
    circle = " ".join(f"fragment F{n} on User {{ {everyone} }}" for n in range(20))
    start = time.process_time()
    errors = (await engine.execute(f"{{ allUsers {{ ...F0 }} }} {circle}", None))["errors"]
    assert time.process_time() - start < 0.5
    assert "Cannot spread fragment 'F0' within itself" in errors[0]["message"]


@pytest.mark.slow
async def test_long_chains_of_fragments_do_not_exhaust_the_stack(lab: Any) -> None:
    engine = lab.make_engine(tokens=100_000, breadth=10**6)
    chain = " ".join(f"fragment F{n} on Query {{ ...F{n + 1} }}" for n in range(3000))
    response = await engine.execute(f"{{ ...F0 }} {chain} fragment F3000 on Query {{ hello }}", None)
    assert response["errors"][0]["extensions"]["code"] in ("QUERY_LIMIT_EXCEEDED", "GRAPHQL_VALIDATION_FAILED")


async def test_repeating_a_field_is_limited_because_validation_compares_each_pair(engine: Engine) -> None:
    start = time.process_time()
    assert (await refusal(engine, "{ allUsers { " + "subscription { id } " * 240 + "} }"))["value"] > 28_000
    assert time.process_time() - start < 0.5


async def test_many_fragments_may_each_ask_for_the_same_fields(lab: Any, engine: Engine) -> None:
    spreads = " ".join(f"...F{n}" for n in range(30))
    fragments = " ".join(f"fragment F{n} on User {{ __typename id fullName }}" for n in range(30))
    response = await engine.execute(f"{{ users {{ nodes {{ {spreads} }} }} }} {fragments}", lab.Context())
    assert "errors" not in response


async def test_fragments_in_one_place_are_compared_with_each_other_as_well(engine: Engine) -> None:
    spreads = " ".join(f"...F{n}" for n in range(200))
    fragments = " ".join(f"fragment F{n} on User {{ a{n}: id }}" for n in range(200))
    assert (await refusal(engine, f"{{ allUsers {{ {spreads} }} }} {fragments}"))["value"] == 200 * 199 // 2


async def test_root_fields_are_limited_aliases_included(lab: Any, engine: Engine) -> None:
    def attempts(count: int) -> str:
        return "mutation { " + " ".join(f'a{n}: append(item: "x")' for n in range(count)) + " }"

    assert "errors" not in await engine.execute(attempts(20), lab.Context())
    assert (await refusal(engine, attempts(21)))["limit"] == "number of root fields"
    hidden = attempts(21).replace("mutation {", "mutation { ...F } fragment F on Mutation {")
    assert (await refusal(engine, hidden))["limit"] == "number of root fields"
    merged = "{ " + "hello " * 30 + "}"
    assert "errors" not in await engine.execute(merged, lab.Context())


async def test_text_and_tokens(engine: Engine) -> None:
    assert (await refusal(engine, "{ hello } #" + "x" * 140_000))["limit"] == "length"
    [error] = (await engine.execute("{ " + "hello " * 6000 + "}", None))["errors"]
    assert "5000 tokens" in error["message"]
    assert error["extensions"]["code"] == "GRAPHQL_PARSE_FAILED"


async def test_a_deeply_nested_text_is_a_clean_error(engine: Engine) -> None:
    for query in ("{ a " * 2000, "{ hello(name: " + "[" * 2400, "query($a: " + "[" * 2400):
        [error] = (await engine.execute(query, None))["errors"]
        assert error["extensions"]["code"] == "GRAPHQL_PARSE_FAILED"


# --- cost
# ---------------------------------------------------------------------------------------------------------


def cost_of(engine: Engine, query: str, **variables: Any) -> int:
    return engine.prepare(query, variables=variables).operation.cost.total(
        engine.prepare(query, variables=variables).values.coerced
    )


@pytest.mark.parametrize(
    ("query", "cost"),
    [
        ("{ __typename }", 1),
        ("{ __schema { types { name } } }", 0),
        ("{ hello }", 1),
        ("{ a: hello b: hello }", 2),
        ('{ user(id: "1") { id fullName } }', 3),
        ('{ user(id: "1") { subscription { status plan { name } } } }', 5),
        ("{ users { pageInfo { endCursor hasNextPage } } }", 1 + 3),
        ("{ users { nodes { id } } }", 1 + 1 + 20),
        ("{ users(first: 5) { nodes { id fullName } } }", 1 + 1 + 5 * 2),
        ("{ users(first: 5) { nodes { id } edges { cursor node { id } } } }", 1 + (1 + 5) + (1 + 5 * 3)),
        ("{ allUsers { id } }", 1 + 20),
        ("{ allUsers { friends(first: 3) { id } } }", 1 + 20 * (1 + 3)),
        ("{ allUsers { friends { subscription { id } } } }", 1 + 20 * (1 + 20 * 2)),
        ("{ users(first: 5) { ...C } } fragment C on UserConnection { nodes { id } }", 1 + 1 + 5),
        ("{ users(first: 5) { ... on UserConnection { nodes { id } } ... { nodes { id } } } }", 1 + 6 + 6),
        ("{ users(first: 0) { nodes { id } } }", 1 + 1),
        ("{ users(first: -5) { nodes { id } } }", 1 + 1),
        ("{ users(first: null) { nodes { id } } }", 1 + 1 + 20),
        ('mutation { append(item: "x") }', 1),
    ],
)
def test_operations_cost_their_fields(engine: Engine, query: str, cost: int) -> None:
    assert cost_of(engine, query) == cost


def test_variables_determine_page_sizes(engine: Engine) -> None:
    query = """
    query($n: Int, $m: Int = 4) {
      users(first: $n) { nodes { friends(first: $m) { id } } }
    }
    """
    assert cost_of(engine, query, n=3) == 1 + 1 + 3 * (1 + 4)
    assert cost_of(engine, query, n=3, m=2) == 1 + 1 + 3 * (1 + 2)
    assert cost_of(engine, query) == 1 + 1 + 20 * (1 + 4)
    assert cost_of(engine, query, n=None, m=None) == 1 + 1 + 20 * (1 + 20)
    assert cost_of(engine, query, n=-1) == 1 + 1


def test_a_page_from_either_end_counts_with_both() -> None:
    resolvers = Resolvers()

    @resolvers.query("logs")
    async def logs(ctx: Any, first: int | None = None, last: int | None = None) -> None: ...

    sdl = "extend type Query { logs(first: Int, last: Int): [Log] } type Log { id: ID }"
    engine = Engine(build([sdl], [resolvers]))
    assert cost_of(engine, "{ logs(first: 3) { id } }") == 1 + 3
    assert cost_of(engine, "{ logs(last: 4) { id } }") == 1 + 4
    assert cost_of(engine, "{ logs(first: 3, last: 4) { id } }") == 1 + 3 + 4
    assert cost_of(engine, "query($n: Int) { logs(first: null, last: $n) { id } }", n=50) == 1 + 50
    assert cost_of(engine, "{ logs { id } }") == 1 + 20


def weighted() -> Engine:
    resolvers = Resolvers()
    for name in ("things", "thing"):

        @resolvers.query(name)
        async def answer(ctx: Any, first: int | None = None) -> None: ...

    sdl = """
    extend type Query { things(first: Int): [Thing] thing(first: Int): Named @cost(weight: 50) }
    interface Named { name: String body: String @cost(weight: 3) }
    type Thing implements Named { name: String body: String @cost(weight: 900) }
    """
    return Engine(build([sdl], [resolvers]))


@pytest.mark.parametrize(
    ("query", "cost"),
    [
        ("{ things(first: 4) { name body } }", 1 + 4 * (1 + 900)),
        ("{ things(first: 2) { a: body b: body } }", 1 + 2 * 1800),
        ("{ thing(first: 1) { name } }", 50 + 1),
        ("{ thing(first: 1) { body } }", 50 + 900),
        ("{ thing(first: 1) { __typename ... on Thing { body } } }", 50 + 1 + 900),
    ],
)
def test_a_field_counts_with_its_declared_weight(query: str, cost: int) -> None:
    assert cost_of(weighted(), query) == cost


def test_weights_stand_in_the_printed_schema() -> None:
    sdl = weighted().schema.sdl()
    assert "  body: String @cost(weight: 900)\n" in sdl
    assert "thing(first: Int): Named @cost(weight: 50)\n" in sdl
    assert "Thing" in build_schema(sdl).type_map


def test_a_weight_that_is_no_number_is_found_at_start() -> None:
    with pytest.raises(SchemaError, match=r"Thing\.name: .*@cost takes a whole number"):
        build(["extend type Query { thing: Thing } type Thing { name: String @cost(weight: -1) }"])


async def test_a_query_that_asks_for_too_much_is_refused_before_it_runs(lab: Any, engine: Engine) -> None:
    query = "query($n: Int) { users(first: $n) { nodes { friends(first: $n) { friends(first: $n) { id } } } } }"
    found = await refusal(engine, query, n=100)
    assert found == {"code": "QUERY_LIMIT_EXCEEDED", "limit": "cost", "value": 1010102, "maximum": 20000}
    assert "errors" not in await engine.execute(query, lab.Context(), variables={"n": 10})


# --- introspection
# ------------------------------------------------------------------------------------------------

GRAPHIQL = get_introspection_query(specified_by_url=True, directive_is_repeatable=True, schema_description=True)
APOLLO = get_introspection_query(
    specified_by_url=True, directive_is_repeatable=True, schema_description=True, input_value_deprecation=True
)


@pytest.mark.parametrize("query", [GRAPHIQL, APOLLO, get_introspection_query(descriptions=False)])
async def test_the_usual_introspection_passes(engine: Engine, query: str) -> None:
    response = await engine.execute(query, None)
    assert "errors" not in response
    assert response["data"]["__schema"]["queryType"]["name"] == "Query"
    assert response["data"]["__schema"]["subscriptionType"] is None


async def test_introspection_beyond_it_is_limited(engine: Engine) -> None:
    deep = "{ __schema { types { " + "ofType { " * 20 + "name" + " }" * 22 + " }"
    parse(deep)
    assert (await refusal(engine, deep))["limit"] == "introspection depth"
    wide = "{ __schema { types { " + " ".join(f"a{n}: name" for n in range(1100)) + " } } }"
    assert (await refusal(engine, wide))["limit"] == "introspection breadth"
    loop = "{ __schema { types { fields { type { fields { type { fields { name } } } } } } } }"
    [error] = (await engine.execute(loop, None))["errors"]
    assert error["message"] == "Maximum introspection depth exceeded"


def nested_lists(outer: int, inner: int) -> str:
    leaves = " ".join(f"b{n}: fields {{ name }}" for n in range(inner))
    lists = " ".join(f"a{n}: fields {{ type {{ ofType {{ ofType {{ {leaves} }} }} }} }}" for n in range(outer))
    return f"{{ __schema {{ types {{ {lists} }} }} }}"


@pytest.mark.parametrize(
    "query",
    [
        nested_lists(30, 14),
        nested_lists(12, 38),
        "{ __schema { types { fields { args { " + " ".join(f"c{n}: name" for n in range(900)) + " } } } } }",
        "{ __schema { types { ...F } } } fragment F on __Type { fields { type { fields { "
        + " ".join(f"n{n}: name" for n in range(200)) + " } } } }",
    ],
)  # fmt: skip
async def test_lists_of_introspection_do_not_multiply(engine: Engine, query: str) -> None:
    assert (await refusal(engine, query))["limit"] == "introspection cost"


async def test_introspection_costs_the_fields_it_resolves(engine: Engine) -> None:
    """Every selected field of every object in the answer, the lists' lengths being the schema's own."""
    document = parse(GRAPHIQL)
    fragments = {node.name.value: node for node in document.definitions[1:]}  # type: ignore[attr-defined]
    price = Introspection(engine.schema.core).price(document.definitions[0], fragments)  # type: ignore[arg-type]

    def count(value: Any) -> int:
        if isinstance(value, list):
            return sum(count(item) if isinstance(item, dict) else 0 for item in value)
        return sum(1 + (count(inner) if isinstance(inner, dict | list) else 0) for inner in value.values())

    answer = (await engine.execute(GRAPHIQL, None))["data"]["__schema"]
    assert price == count(answer)


async def test_one_type_at_a_time_may_be_asked_for(engine: Engine) -> None:
    full = GRAPHIQL[GRAPHIQL.index("fragment") :]
    query = "{ " + " ".join(f'{alias}: __type(name: "User") {{ ...FullType }}' for alias in "abc") + " } "
    assert "errors" not in await engine.execute(query + full, None)
    named = "query ($name: String!) { __type(name: $name) { ...FullType } } " + full
    answer = await engine.execute(named, None, variables={"name": "User"})
    assert answer["data"]["__type"]["name"] == "User"


async def test_introspection_can_be_turned_off(lab: Any) -> None:
    engine = lab.make_engine(introspection=False)
    [error] = (await engine.execute("{ __schema { queryType { name } } }", None))["errors"][:1]
    assert error["extensions"]["code"] == "GRAPHQL_VALIDATION_FAILED"
    assert (await engine.execute("{ __typename hello }", lab.Context()))["data"]["__typename"] == "Query"


# --- nothing unfolds
# ----------------------------------------------------------------------------------------------

NAMES = st.sampled_from(["A", "B", "C", "D", "Unknown"])
SELECTIONS = st.recursive(
    st.sampled_from(["id", "__typename", "fullName", "nope"]) | NAMES.map("...{}".format),
    lambda inner: st.builds(
        "{} {{ {} }}".format,
        st.sampled_from(
            ["friends", "friends(first: 3)", "x: friends", "subscription", "...", "... on User", "__schema"]
        ),
        st.lists(inner, min_size=1, max_size=4).map(" ".join),
    ),
    max_leaves=12,
)


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(st.lists(SELECTIONS, min_size=5, max_size=5))
def test_any_document_is_either_prepared_or_refused(engine: Engine, selections: list[str]) -> None:
    root, *fragments = selections
    query = f"{{ allUsers {{ {root} }} }} " + " ".join(
        f"fragment {name} on User {{ {body} }}" for name, body in zip("ABCD", fragments, strict=True)
    )
    with contextlib.suppress(RequestRefused):
        engine.prepare(query)
