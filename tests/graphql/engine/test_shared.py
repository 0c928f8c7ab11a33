"""Values that a resolver shares between requests: encoded once, and again when there is another object."""

from typing import Any

import msgspec

from ximler.graphql.engine import Engine, Resolvers, Shared, build

SDL = "extend type Query { things: [Thing!]! } type Thing { size: Int! name: String more: Int }"


async def test_shared_values_are_encoded_once_until_they_change() -> None:
    resolvers = Resolvers()
    held: list[dict[str, Any]] = [{"size": 1, "name": "a"}]

    @resolvers.query("things")
    async def things(ctx: object) -> Shared:
        return Shared(held)

    @resolvers.field("Thing", "more")
    async def more(ctx: list[int], parents: list[dict[str, Any]]) -> list[int]:
        ctx[0] += 1
        return [ctx[0]] * len(parents)

    engine = Engine(build([SDL], [resolvers]))
    plain, resolved = "{ things { size n: name } }", "{ things { more } }"
    raws = []
    for _ in range(3):
        assert await engine.execute(plain, [0]) == {"data": {"things": [{"size": 1, "n": "a"}]}}
        raws.append((await engine.run(engine.prepare(plain), [0]))["data"]["things"])
    assert type(raws[-1]) is msgspec.Raw
    assert raws[-1] is raws[-2]
    for n in range(3):  # resolvers below it are still asked
        assert await engine.execute(resolved, [n]) == {"data": {"things": [{"more": n + 1}]}}
    held = [{"size": 2}]
    assert await engine.execute(plain, [0]) == {"data": {"things": [{"size": 2, "n": None}]}}
    held = [{"size": "many"}]
    failed = await engine.execute(plain, [0])
    assert (failed["data"], failed["errors"][0]["path"]) == (None, ["things", 0, "size"])
