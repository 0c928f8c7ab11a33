"""Random operations, random data behind them, and graphql-core to say what the answer is."""

import asyncio
import inspect
import math
import random
import zlib
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, NamedTuple

import graphql
from graphql import (
    GraphQLEnumType,
    GraphQLInputObjectType,
    GraphQLObjectType,
    GraphQLUnionType,
    get_named_type,
    is_abstract_type,
    is_input_object_type,
    is_leaf_type,
    is_list_type,
    is_non_null_type,
)

from ximler.graphql.engine import Engine, Limits, Resolvers, Schema, build
from ximler.graphql.engine.names import snake

SYNTHETIC = """
extend type Query {
  node(id: Int = 1): Node
  nodes(n: Int! = 3): [Node!]
  things: [Thing!]!
  thing(x: [Int!], i: In): Thing
  hard(i: In!): Thing!
  anything: [Anything]
  count(x: Int = 3): Int!
}
extend type Mutation {
  bump(by: Int = 1): Thing
  push(i: In): Thing!
}
input In { a: Int = 5 n: Int l: [[Int]] o: In kind: Kind = ROUND j: JSON }
enum Kind { ROUND SQUARE }
interface Node { id: ID! name: String peer(x: Int): Node parts: [Part!] }
union Anything = Thing | Other
type Thing implements Node {
  id: ID! name: String count: Int! ratio: Float flag: Boolean kind: Kind at: DateTime! tags: [String!] grid: [[Int!]]
  meta: JSON size: Long part: Part hardPart: Part! parts: [Part!] table: [[Part]!]
  peer(x: Int): Node hard: Thing! few(n: Int = 2): [Thing] many: [Thing!]! anything: Anything
}
type Other implements Node { id: ID! name: String peer(x: Int): Node parts: [Part!] note: String! kinds: [Kind] }
type Part { id: ID! label: String! weight: Float! sub: Part owner(x: Int = 1): Thing all: [[Thing]] }
"""
RESOLVED = [
    *(("Query", name) for name in ("node", "nodes", "things", "thing", "hard", "anything", "count")),
    *(("Mutation", name) for name in ("bump", "push")),
    *(("Thing", name) for name in ("peer", "hard", "few", "many", "anything")),
    ("Other", "peer"),
    ("Part", "owner"),
    ("Part", "all"),
]


class Oops(Exception): ...


def dice(*what: Any) -> int:
    return zlib.crc32(repr(what).encode())


class Lab:
    """A schema whose resolvers make things up, the same for the same seed, parent and arguments.

    `wildness`: of a thousand values how many are wrong; `late`: whether resolvers wait.
    """

    def __init__(self, sources: list[Any], resolved: list[tuple[str, str]]) -> None:
        self.seed = 0
        self.wildness = 0
        self.late = False
        resolvers = Resolvers()
        for type_name, field in resolved:
            self._register(resolvers, type_name, field)
        self.schema: Schema = build(sources, [resolvers])
        self.classes = {name: type(name, (_Thing,), {}) for name in self.schema.core.type_map}
        self.engine = Engine(self.schema, limits=Limits(cost=10**12, calls=10**6, depth=50, root_fields=100))

    def _register(self, resolvers: Resolvers, type_name: str, field: str) -> None:
        coordinate = f"{type_name}.{field}"

        async def root(ctx: Any, **arguments: Any) -> Any:
            return (await answer(ctx, [None], arguments))[0]

        async def event(ctx: Any, event: Any, **arguments: Any) -> Any: ...

        async def follow(ctx: Any, **arguments: Any) -> Any: ...

        async def batch(ctx: Any, parents: list[Any], **arguments: Any) -> list[Any]:
            return await answer(ctx, parents, arguments)

        async def answer(calls: list[Any], parents: list[Any], arguments: dict[str, Any]) -> list[Any]:
            keys = [key_of(parent) for parent in parents]
            calls += [(coordinate, key, repr(sorted(arguments.items()))) for key in keys]
            if self.late:
                for _ in range(dice(self.seed, coordinate, "late") % 4):
                    await asyncio.sleep(0)
            if dice(self.seed, coordinate, "fails") % 1000 < self.wildness // 4:
                raise Oops
            type_ = self.schema.core.type_map[type_name].fields[field].type
            made = [self.make(type_, f"{key}.{field}{sorted(arguments.items())}") for key in keys]
            if type_name in ("Query", "Mutation") and isinstance(made[0], Exception):
                raise made[0]
            return made

        if type_name == "Query":
            resolvers.query(field)(root)
        elif type_name == "Mutation":
            resolvers.mutation(field)(root)
        elif type_name == "Subscriptions":  # of no generated operation
            resolvers.subscription(field, follow=follow)(event)
        else:
            resolvers.field(type_name, field)(batch)

    def make(self, type_: Any, key: str, *, inside: bool = False) -> Any:
        """A value for a type; now and then one that does not fit."""
        roll = dice(self.seed, key)
        if is_non_null_type(type_):
            type_ = type_.of_type
        elif roll % 9 == 0:
            return None
        if roll // 9 % 1000 < self.wildness:
            return [None, Oops("gone"), "text", True, math.nan, 7, {}, [], [None], _Id(1), 2**40][roll // 9999 % 11]
        if is_list_type(type_):
            items = [self.make(type_.of_type, f"{key}[{n}]", inside=True) for n in range(roll // 7 % 4)]
            return [items, tuple(items), iter(items) if self.wildness and not inside else items, items][roll // 11 % 4]
        if is_leaf_type(type_):
            return self.leaf(type_, roll // 13)
        names = (
            sorted(each.name for each in self.schema.core.get_possible_types(type_))
            if is_abstract_type(type_)
            else [type_.name]
        )
        name = names[roll // 17 % len(names)]
        if roll // 19 % 8 == 0:
            fields = self.schema.core.type_map[name].fields
            leaves = {
                snake(field): self.make(of.type, f"{key}.{field}")
                for field, of in fields.items()
                if is_leaf_type(get_named_type(of.type))
            }
            return {"__typename": name, "_key": key, **leaves}
        return self.classes[name](self, name, key)

    def leaf(self, type_: Any, roll: int) -> Any:
        if isinstance(type_, GraphQLEnumType):
            return list(type_.values)[roll % len(type_.values)]
        return {
            "Int": roll % 99,
            "Long": roll * 1000,
            "Float": [roll / 7, roll][roll % 2],
            "String": f"text {roll}",
            "ID": [str(roll), roll, _Id(roll)][roll % 3],
            "Boolean": roll % 2 == 0,
            "Date": datetime.fromtimestamp(roll % 10**9, UTC).date(),
            "DateTime": datetime.fromtimestamp(roll % 10**9, UTC),
            "JSON": [{"a": [roll]}, roll, "x", None, [1.5]][roll % 5],
        }[type_.name]


class _Id:
    def __init__(self, number: int) -> None:
        self.number = number

    def __str__(self) -> str:
        return f"id{self.number}"

    def __repr__(self) -> str:
        return f"_Id({self.number})"


class _Thing:
    """An object of a schema's type: its attributes are made when they are read."""

    def __init__(self, lab: Lab, name: str, key: str) -> None:
        self._lab, self._fields, self._key = lab, lab.schema.core.type_map[name].fields, key

    def __getattr__(self, attribute: str) -> Any:
        for name, field in self._fields.items():
            if snake(name) == attribute:
                value = self._lab.make(field.type, f"{self._key}.{name}")
                if isinstance(value, Exception):
                    raise value
                return value
        raise AttributeError(attribute)


def key_of(parent: Any) -> str:
    if isinstance(parent, dict):
        return str(parent.get("_key"))
    return parent._key if isinstance(parent, _Thing) else repr(type(parent))


class Answer(NamedTuple):
    data: Any
    errors: list[list[str | int]]
    calls: Counter[Any]


async def ask_ours(lab: Lab, query: str, variables: dict[str, Any]) -> Answer:
    calls: list[Any] = []
    response = await lab.engine.execute(query, calls, variables=variables)
    if response.get("data") is None and all("path" not in error for error in response["errors"]):
        return Answer("refused", [], Counter())
    paths = [error.get("path", []) for error in response.get("errors", ())]
    return Answer(response["data"], sorted(paths, key=str), Counter(calls))


async def ask_core(lab: Lab, query: str, variables: dict[str, Any]) -> Answer:
    """The same resolvers, called with one parent at a time."""
    calls: list[Any] = []
    coroutines: list[Any] = []

    def resolve(parent: Any, info: Any, **arguments: Any) -> Any:
        bound = lab.schema.bound.get(f"{info.parent_type.name}.{info.field_name}")
        if bound is None:
            name = snake(info.field_name)
            return parent.get(name) if parent.__class__ is dict else getattr(parent, name)
        function = bound.resolver.function
        found = one(function, parent, arguments) if bound.resolver.batch else function(calls, **arguments)
        if inspect.iscoroutine(found):
            coroutines.append(found)
        return found

    async def one(function: Any, parent: Any, arguments: dict[str, Any]) -> Any:
        found = (await function(calls, [parent], **arguments))[0]
        if isinstance(found, Exception):
            raise found
        return found

    def type_of(value: Any, info: Any, abstract: Any) -> Any:
        return value["__typename"] if isinstance(value, dict) else type(value).__name__

    result = graphql.execute(
        lab.schema.core, graphql.parse(query), variable_values=variables, field_resolver=resolve, type_resolver=type_of
    )
    if not isinstance(result, graphql.ExecutionResult):
        result = await result
        for _ in range(40):  # calls that an error elsewhere has made useless may still run
            await asyncio.sleep(0)
    for coroutine in coroutines:
        if inspect.getcoroutinestate(coroutine) == inspect.CORO_CREATED:  # graphql-core drops them after an error
            coroutine.close()
    if result.data is None and result.errors and all(error.path is None for error in result.errors):
        return Answer("refused", [], Counter())
    return Answer(result.data, sorted((e.path or [] for e in result.errors or ()), key=str), Counter(calls))


def nulled(data: Any, path: list[str | int]) -> tuple[str | int, ...]:
    """The path of the null that an error caused."""
    for depth, step in enumerate(path):
        if data is None:
            return tuple(path[:depth])
        data = data[step]
    return tuple(path)


class Writer:
    """Writes one random operation, valid most of the time."""

    def __init__(self, schema: graphql.GraphQLSchema, seed: int) -> None:
        self.schema = schema
        self.random = random.Random(seed)
        self.variables: dict[str, tuple[str, Any]] = {}
        self.fragments: dict[str, str] = {}
        self.left = 30

    def write(self) -> tuple[str, dict[str, Any]]:
        kind = "mutation" if self.random.random() < 0.15 else "query"
        root: Any = self.schema.get_root_type(graphql.OperationType(kind))
        body = self.selection(root, 4)
        declared = " ".join(f"${name}: {declared}" for name, (declared, _) in self.variables.items())
        text = f"{kind} Q{f'({declared})' if declared else ''} {body} {' '.join(self.fragments.values())}"
        return text, {name: value for name, (_, value) in self.variables.items() if value is not ...}

    def selection(self, type_: Any, depth: int) -> str:
        chosen = [self.one(type_, depth) for _ in range(self.random.randint(1, 4))]
        return "{ " + " ".join(chosen) + " }"

    def one(self, type_: Any, depth: int) -> str:
        roll = self.random.random()
        self.left -= 1
        if roll < 0.08 or (isinstance(type_, GraphQLUnionType) and (roll < 0.2 or not depth)):
            return f"{self.random.choice(['', 'kind_of: '])}__typename{self.condition()}"
        if (roll < 0.25 or isinstance(type_, GraphQLUnionType)) and depth:
            return self.fragment(type_, depth)
        fields = [
            (name, field)
            for name, field in type_.fields.items()
            if (depth and self.left > 0) or is_leaf_type(get_named_type(field.type))
        ]
        if not fields:
            return "__typename"
        name, field = self.random.choice(fields)
        given = " ".join(
            f"{argument}: {self.value(of.type)}"
            for argument, of in field.args.items()
            if graphql.is_required_argument(of) or self.random.random() < 0.6
        )
        given = f"({given})" if given else ""
        alias = f"a{dice(name, given) % 1000}: " if given or self.random.random() < 0.1 else ""
        inner = (
            "" if is_leaf_type(get_named_type(field.type)) else self.selection(get_named_type(field.type), depth - 1)
        )
        return f"{alias}{name}{given}{self.condition()} {inner}"

    def fragment(self, type_: Any, depth: int) -> str:
        on = type_
        if is_abstract_type(type_) and self.random.random() < 0.8:
            on = self.random.choice(self.schema.get_possible_types(type_))
        elif isinstance(type_, GraphQLObjectType) and type_.interfaces and self.random.random() < 0.3:
            on = type_.interfaces[0]
        if self.random.random() < 0.5:
            condition = f"on {on.name}" if on is not type_ or self.random.random() < 0.5 else ""
            return f"... {condition} {self.condition()} {self.selection(on, depth)}"
        known = [name for name, text in self.fragments.items() if f" on {on.name} " in text]
        if known and self.random.random() < 0.5:
            return f"...{self.random.choice(known)}{self.condition()}"
        name = f"F{len(self.fragments)}"
        self.fragments[name] = ""  # its name is taken
        self.fragments[name] = f"fragment {name} on {on.name} {self.selection(on, depth - 1)}"
        return f"...{name}{self.condition()}"

    def condition(self) -> str:
        if self.random.random() > 0.12:
            return ""
        found = f" @{self.random.choice(['skip', 'include'])}(if: {self.value(graphql.GraphQLNonNull(graphql.GraphQLBoolean))})"
        return found if self.random.random() < 0.8 else found.replace("skip", "include") + " @skip(if: false)"

    def value(self, type_: Any) -> str:
        """A literal or a variable."""
        if self.random.random() < 0.4:
            return self.variable(type_)
        if is_non_null_type(type_):
            return self.value(type_.of_type) if self.random.random() < 0.5 else self.literal(type_.of_type, 2)
        return "null" if self.random.random() < 0.1 else self.literal(type_, 2)

    def variable(self, type_: Any) -> str:
        name = f"v{len(self.variables)}"
        declared, required = str(type_), is_non_null_type(type_)
        value: Any = self.json(type_, 2)
        bare = declared.rstrip("!")
        roll = self.random.random()
        if roll < 0.2:
            declared += f" = {self.literal(type_.of_type if required else type_, 1)}"
            value = ... if roll < 0.1 else value
        elif roll < 0.3 and not required:
            value = self.random.choice([None, ...])
        elif roll < 0.36 and required:
            declared, value = f"{bare} = {self.literal(type_.of_type, 1)}", self.random.choice([None, ..., value])
        self.variables[name] = (declared, value)
        return f"${name}"

    def literal(self, type_: Any, depth: int) -> str:
        if is_non_null_type(type_):
            return self.literal(type_.of_type, depth)
        if is_list_type(type_):
            if self.random.random() < 0.2:
                return self.literal(type_.of_type, depth)
            items = [
                self.value(type_.of_type) if depth > 1 else self.literal(type_.of_type, 0)
                for _ in range(self.random.randint(0, 3))
            ]
            return f"[{', '.join(items)}]"
        if is_input_object_type(type_):
            return (
                "{"
                + ", ".join(
                    f"{name}: {value}"
                    for name, value in self.inputs(type_, depth, self.value if depth > 1 else self.literal_of)
                )
                + "}"
            )
        return _text(self.json(type_, 0), type_)

    def literal_of(self, type_: Any) -> str:
        return self.literal(type_, 0)

    def inputs(self, type_: GraphQLInputObjectType, depth: int, write: Any) -> Iterator[tuple[str, Any]]:
        for name, field in type_.fields.items():
            deep = is_input_object_type(get_named_type(field.type))
            if graphql.is_required_input_field(field) or (self.random.random() < 0.5 and (depth or not deep)):
                yield name, write(field.type)

    def json(self, type_: Any, depth: int) -> Any:
        if is_non_null_type(type_):
            return self.json(type_.of_type, depth)
        if is_list_type(type_):
            return [self.json(type_.of_type, depth - 1) for _ in range(self.random.randint(0, 3))]
        if is_input_object_type(type_):
            return dict(self.inputs(type_, depth, lambda inner: self.json(inner, depth - 1)))
        if isinstance(type_, GraphQLEnumType):
            return self.random.choice(list(type_.values))
        return {
            "Int": self.random.randint(0, 5),
            "Long": 5,
            "Float": 1.5,
            "String": self.random.choice(["", "text"]),
            "ID": "1",
            "Boolean": self.random.random() < 0.5,
            "Date": "2026-01-31",
            "DateTime": "2026-01-31T12:00:00Z",
            "JSON": 1,
        }[type_.name]


def _text(value: Any, type_: Any) -> str:
    if isinstance(type_, GraphQLEnumType):
        return str(value)
    return (
        {True: "true", False: "false"}[value]
        if isinstance(value, bool)
        else f'"{value}"'
        if isinstance(value, str)
        else str(value)
    )
