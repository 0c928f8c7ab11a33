from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from graphql import build_schema

import ximler.graphql.engine
from ximler.graphql.engine import Engine, Resolvers, SchemaError, build


def problems_of(*sources: Any, registries: list[Resolvers] | None = None) -> list[str]:
    with pytest.raises(SchemaError) as caught:
        build(sources, registries or [])
    assert all(problem in str(caught.value) for problem in caught.value.problems)
    return caught.value.problems


def answering(*fields: str) -> Resolvers:
    resolvers = Resolvers()
    for field in fields:

        @resolvers.query(field)
        async def resolve(ctx: Any) -> None: ...

    return resolvers


async def test_a_domain_is_a_module_beside_its_sdl(tmp_path: Path) -> None:
    (tmp_path / "plans.graphql").write_text("extend type Query { plans: [String!]! }")
    module: Any = ModuleType("plans")
    module.__file__ = str(tmp_path / "plans.py")
    resolvers = module.resolvers = Resolvers()

    @resolvers.query("plans")
    async def plans(ctx: Any) -> list[str]:
        return ["free", "pro"]

    schema = build([module])
    assert await Engine(schema).execute("{ plans }", None) == {"data": {"plans": ["free", "pro"]}}


async def test_files_extend_each_others_types(tmp_path: Path) -> None:
    first, second = tmp_path / "a.graphql", tmp_path / "b.graphql"
    first.write_text("extend type Query { user: User } type User { id: ID! }")
    second.write_text("extend type User { nickName: String } extend type Query { other: Int }")
    resolvers = answering("other")

    @resolvers.query("user")
    async def user(ctx: Any) -> Any:
        return SimpleNamespace(id=7, nick_name="Seven")

    schema = build([first, second], [resolvers])
    response = await Engine(schema).execute("{ user { id nickName } }", None)
    assert response == {"data": {"user": {"id": "7", "nickName": "Seven"}}}


def test_a_type_called_subscription_is_an_ordinary_type(lab: Any) -> None:
    schema = build([lab.SDL], [lab.make_resolvers()])
    assert schema.core.subscription_type is None
    printed = build_schema(schema.sdl())
    assert printed.subscription_type is None
    assert "Subscription" in printed.type_map


def test_a_schema_without_mutations_has_no_mutation_type() -> None:
    assert build(["extend type Query { a: Int }"], [answering("a")]).core.mutation_type is None


def test_root_types_may_be_defined_instead_of_extended() -> None:
    schema = build(["type Query { a: Int }"], [answering("a")])
    assert schema.core.query_type is not None
    assert list(schema.core.query_type.fields) == ["a"]


def test_syntax_errors_name_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "billing.graphql"
    path.write_text("type Plan {\n  id: ID!\n  name String\n}\n")
    assert problems_of(path) == [f"{path}:3:8: Syntax Error: Expected ':', found Name 'String'."]


def test_unknown_types_name_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "billing.graphql"
    path.write_text("extend type Query {\n  plan: Plam\n}\n")
    assert problems_of(path, registries=[answering("plan")]) == [f"{path}:2:9: Unknown type 'Plam'."]


def test_types_that_cannot_be_name_their_place() -> None:
    [problem] = problems_of("type Query { a: Int }\ninterface I { id: ID! }\ntype T implements I { x: Int }")
    assert problem.startswith("SDL text 1:2:15: Interface field I.id expected but T does not provide it.")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    assert "billing.graphql" in problems_of(tmp_path / "billing.graphql")[0]


def test_a_module_without_resolvers_is_named(tmp_path: Path) -> None:
    module = ModuleType("ximler.graphql.billing")
    module.__file__ = str(tmp_path / "billing.py")
    assert problems_of(module) == ["ximler.graphql.billing: has no `resolvers = Resolvers()`"]


def test_a_scalar_without_values_is_refused() -> None:
    [problem] = problems_of("type Query { a: Decimal } scalar Decimal", registries=[answering("a")])
    assert problem.startswith("scalar Decimal: no values are defined for it")


def test_a_root_field_needs_a_resolver() -> None:
    assert problems_of("extend type Query {\n a: Int\n b: Int }", registries=[answering("a")]) == [
        "Query.b: SDL text 1:3: this root field has no resolver"
    ]


def test_a_field_with_arguments_needs_a_resolver() -> None:
    sdl = "extend type Query { user: User } type User { friends(first: Int): Int }"
    [problem] = problems_of(sdl, registries=[answering("user")])
    assert problem == "User.friends: SDL text 1:1: this field takes arguments, so it needs a batch resolver"


def test_resolvers_of_unknown_fields_and_types_are_named() -> None:
    resolvers = answering("a", "b")

    @resolvers.field("User", "name")
    async def names(ctx: Any, parents: list[Any]) -> None: ...

    @resolvers.field("Size", "name")
    async def sizes(ctx: Any, parents: list[Any]) -> None: ...

    @resolvers.mutation("save")
    async def save(ctx: Any) -> None: ...

    found = problems_of("extend type Query { a: Int } enum Size { S }", registries=[resolvers])
    here = Path(__file__).name
    assert [problem.split(": ", 1)[0] for problem in found] == ["Query.b", "User.name", "Size.name", "Mutation.save"]
    assert all(f": {here}:" in problem for problem in found)
    assert "a field that SDL does not declare" in found[0]
    assert "a field of User, a type that SDL does not declare" in found[1]
    assert "a field of Size, which is not an object type" in found[2]


def test_parameters_must_be_the_fields_arguments() -> None:
    resolvers = Resolvers()

    @resolvers.query("a")
    async def a(ctx: Any, first: int, extra: int = 0) -> None: ...

    @resolvers.query("b")
    async def b(ctx: Any, *, after_that: str) -> None: ...

    @resolvers.query("c")
    async def c(ctx: Any, **anything: Any) -> None: ...

    @resolvers.query("d")
    async def d() -> None: ...

    @resolvers.field("T", "e")
    async def e(ctx: Any) -> None: ...

    sdl = """
    extend type Query { a(first: Int!, last: Int): Int b(afterThat: String): Int c(x: Int, y: Int!): Int d: T }
    type T { e: Int }
    """
    found = [problem.split(">", 1)[-1] for problem in problems_of(sdl, registries=[resolvers])]
    assert len(found) == 5
    assert found[0].endswith("a takes a parameter `extra` that SDL does not declare")
    assert found[1].endswith("a has no parameter `last` for the argument of type Int")
    assert found[2].endswith("b needs a default for `after_that`: a client may leave it out")
    assert found[3].endswith("d must take (ctx, …) first")
    assert found[4].endswith("e must take (ctx, parents, …) first")


def test_a_field_is_answered_once() -> None:
    [problem] = problems_of("extend type Query { a: Int }", registries=[answering("a"), answering("a")])
    assert "answers already" in problem
    with pytest.raises(TypeError, match=r"Query\.a has two resolvers"):
        answering("a", "a")


def test_a_resolver_must_be_async_and_on_the_right_kind_of_field() -> None:
    not_async: Any = lambda ctx: None  # noqa: E731  # as one may register it by mistake
    with pytest.raises(TypeError, match="must be an async function"):
        Resolvers().query("a")(not_async)
    with pytest.raises(TypeError, match="is a root field"):
        Resolvers().field("Query", "a")


def test_all_problems_are_reported_together() -> None:
    assert len(problems_of("extend type Query { a: Int b: Int c: Int }")) == 3


async def test_interfaces_and_unions_go_by_class_and_typename() -> None:
    class Cat:
        name = "Tom"

    class Stone: ...

    resolvers = Resolvers()

    @resolvers.query("pets")
    async def pets(ctx: Any) -> list[Any]:
        return [Cat(), {"__typename": "Dog", "name": "Rex"}, Stone()]

    sdl = "extend type Query { pets: [Pet] } union Pet = Cat | Dog type Cat { name: String } type Dog { name: String }"
    query = "{ pets { __typename ... on Cat { name } ... on Dog { name } } }"
    response = await Engine(build([sdl], [resolvers])).execute(query, None)
    assert response["data"] == {
        "pets": [{"__typename": "Cat", "name": "Tom"}, {"__typename": "Dog", "name": "Rex"}, None]
    }
    assert response["errors"][0]["extensions"]["code"] == "INTERNAL"


async def test_dicts_are_read_by_either_name_and_never_by_their_methods() -> None:
    resolvers = Resolvers()

    @resolvers.query("box")
    async def box(ctx: Any) -> Any:
        return {"max_size": 1, "minSize": 2, "items": 3}

    sdl = "extend type Query { box: Box } type Box { maxSize: Int minSize: Int items: Int values: Int }"
    response = await Engine(build([sdl], [resolvers])).execute("{ box { maxSize minSize items values } }", None)
    assert response == {"data": {"box": {"maxSize": 1, "minSize": 2, "items": 3, "values": None}}}


async def test_a_missing_attribute_is_a_bug_not_null() -> None:
    resolvers = Resolvers()

    @resolvers.query("box")
    async def box(ctx: Any) -> Any:
        return SimpleNamespace()

    schema = build(["extend type Query { box: Box } type Box { size: Int }"], [resolvers])
    response = await Engine(schema).execute("{ box { size } }", None)
    assert response["errors"][0]["extensions"]["code"] == "INTERNAL"


def test_the_engine_knows_no_domain() -> None:
    package = Path(ximler.graphql.engine.__file__).parent
    for path in package.glob("*.py"):
        for line in path.read_text().splitlines():
            if line.startswith(("import ", "from ")):
                assert not line.startswith(("from bson", "from pymongo", "import bson", "import pymongo")), path
                assert "ximler" not in line or line.startswith(("from ximler.core", "from ximler.graphql.engine")), path
