"""What each operation costs the database, in commands sent: a figure that no noisy machine can blur."""

import asyncio
from typing import Any

import pytest
from bson import ObjectId
from tests.serving import PASSWORD, REGISTER, Client

from ximler.database import Database
from ximler.database.monitoring import RoundTrip, round_trips
from ximler.schema.subscription import Subscription

SESSION = (
    "aggregate",
    "sessions",
)  # joined with its user, in the first request that carries its token: then it is known
LIMITS = ("aggregate", "users")  # the user joined with their active subscription and its plan, or the free one
NOTE = ("insert", "auditlogs")
THROTTLE = ("findAndModify", "throttles")
RESERVE = ("update", "gauges")
AUDIT = ("insert", "auditlogs")  # in the same transaction
COMMIT = ("commitTransaction", "")
VERSIONS = ("delete", "canvasversions"), ("delete", "canvascontents"), ("delete", "canvasparts")
ASSETS = ("aggregate", "assets"), ("update", "assetfiles")

ME = """{ me {
  id name
  subscription { status plan { name } }
  projects { nodes { name } }
  usage { resource used limit }
} }"""

# What each operation sends. Those in `me` and its children run side by side, except `plans`, which waits
# for the subscription; everything else is one after the other.
COSTS: dict[str, list[RoundTrip]] = {
    "register": [
        THROTTLE, THROTTLE, THROTTLE,  # by address, by the network around it, and by mailbox
        ("insert", "registrations"), ("insert", "outbox"), COMMIT,  # the link is mailed by a job
    ],
    "confirm": [
        ("findAndModify", "registrations"), ("delete", "registrations"), ("insert", "users"), ("insert", "auditlogs"), COMMIT,
        ("update", "users"), ("update", "credentials"), NOTE, ("insert", "sessions"), COMMIT,  # and signed in, on a new device
    ],
    # The user joined with what decides who signs in, and their throttles; then one transaction, guarded by
    # the password and by what has been proved: neither a change of password nor a new second factor can be
    # overtaken. A new browser and device are remembered.
    "signIn": [
        ("aggregate", "users"), ("update", "users"), ("find", "credentials"), ("update", "credentials"), NOTE,
        ("insert", "sessions"), COMMIT,
    ],
    # Counted by account, address and network, and audited, concurrently. Entries are counted, too.
    "signIn, refused": [
        ("aggregate", "users"), THROTTLE, THROTTLE, THROTTLE, ("findAndModify", "refusals"),
        ("findAndModify", "refusals"), ("insert", "auditlogs"),
    ],
    "plans": [("find", "plans")],  # nobody needs to sign in; after that they are known, until one is written
    "plans, again": [],
    "me": [SESSION],
    "me, again": [],
    "me with everything": [
        ("find", "subscriptions"),
        ("find", "projects"),
        # usage: the user joined with limits, gauge (or, without one, the count of their projects) and the
        # month's calls
        ("aggregate", "users"),
    ],
    # Usage and subscription together, of a user whom the process knows.
    "me with everything, again": [("find", "projects"), ("aggregate", "gauges")],
    "usage": [("aggregate", "gauges")],  # joined with subscription, entitlement and the month's calls: the plans are known
    "projects": [("find", "projects")],
    "projects(search)": [("aggregate", "projects")],
    "projects(sort)": [("find", "projects")],
    "projects(sort, search)": [("aggregate", "projects"), ("find", "projects")],
    "projects with canvas": [("find", "projects"), ("find", "projects")],
    "project": [("find", "projects")],
    "createProject, the first": [LIMITS, RESERVE, ("insert", "projects"), AUDIT, COMMIT],
    # Once in a user's life, and only where another application made projects before.
    "createProject, the first after another application's": [
        LIMITS, RESERVE, RESERVE, ("insert", "projects"), AUDIT, COMMIT,
    ],
    "createProject": [LIMITS, RESERVE, ("insert", "projects"), AUDIT, COMMIT],
    "createProject, refused": [LIMITS, RESERVE, ("find", "gauges"), ("abortTransaction", "")],
    "updateProject, texts": [("aggregate", "projects"), ("findAndModify", "projects"), COMMIT],
    "updateProject, canvas": [
        LIMITS, ("aggregate", "projects"), RESERVE, ("findAndModify", "projects"), COMMIT,
    ],
    # The trash is looked at in between: it keeps a limited number.
    "deleteProject": [("findAndModify", "projects"), ("aggregate", "projects"), RESERVE, AUDIT, COMMIT],
    "trash": [("find", "projects")],
    "purgeProject": [
        ("aggregate", "projects"), ("delete", "projects"), *VERSIONS, ("delete", "projectshares"), ("delete", "projectlinks"),
        ("delete", "projectthumbnails"), *ASSETS, AUDIT, RESERVE, COMMIT,
    ],
    "restoreProject": [LIMITS, ("find", "projects"), RESERVE, ("findAndModify", "projects"), AUDIT, COMMIT],
    "signOut": [("delete", "sessions")],
}  # fmt: skip

SIDE_BY_SIDE = ("signIn", "signIn, refused", "me with everything", "me with everything, again")

CREATE = "mutation ($name: String!) { createProject(input: {name: $name}) { id } }"
UPDATE = "mutation ($id: ID!, $input: UpdateProjectInput!) { updateProject(id: $id, input: $input) { name } }"
DELETE = "mutation ($id: ID!) { deleteProject(id: $id) { id } }"
RESTORE = "mutation ($id: ID!) { restoreProject(id: $id) { id } }"


async def measure(client: Client, query: str, *, code: str | None = None, **variables: Any) -> list[RoundTrip]:
    # On a machine under load the feed may be behind: who is signed in would be asked for.
    await client.app._app.state.feed.caught_up()
    with round_trips() as trips:
        answer = await client.ask(query, **variables)
    assert answer.code == code, answer.errors
    return trips


@pytest.fixture
async def costs(client: Client, database: Database) -> dict[str, list[RoundTrip]]:
    """Each operation's commands, measured."""
    await asyncio.gather(*(client.ask("{ plans { id } }") for _ in range(20)))  # opens the pool's connections
    client.app._app.state.plans._forget()  # type: ignore[attr-defined]  # what opened the connections read them
    found = {"plans": await measure(client, "{ plans { id limits { projects } } }")}
    found["plans, again"] = await measure(client, "{ plans { id limits { projects } } }")
    with round_trips() as found["register"]:
        await client.ask(REGISTER, input={"name": "Ada", "email": "ada@example.com", "password": PASSWORD})
    token = await client.link()
    with round_trips() as found["confirm"]:
        await client.confirm(token)
    with round_trips() as found["signIn"]:
        answer = await client.sign_in("ada@example.com")
    with round_trips() as found["signIn, refused"]:
        await Client(client.app).sign_in("ada@example.com", "the wrong one")
    user_id = ObjectId(answer["signIn"]["user"]["id"])
    found["me"] = await measure(client, "{ me { id email } }")
    found["me, again"] = await measure(client, "{ me { id email } }")
    await database.subscriptions.insert(
        Subscription(user_id=user_id, plan_id="pro", status="EXPIRED", start_date=database.clock.now(), price=29)
    )
    found["me with everything"] = await measure(client, ME)  # before there is a gauge
    found["createProject, the first"] = await measure(client, CREATE, name="first")
    assert sorted(await measure(client, ME)) == sorted(found["me with everything"])  # and after
    found["me with everything, again"] = await measure(client, ME)
    found["usage"] = await measure(client, "{ usage { used } }")
    found["createProject"] = await measure(client, CREATE, name="second")
    await measure(client, CREATE, name="third")
    found["createProject, refused"] = await measure(client, CREATE, code="QUOTA_EXCEEDED", name="fourth")
    found["projects"] = await measure(client, "{ projects { nodes { name } } }")
    found["projects(search)"] = await measure(client, '{ projects(search: "fir") { nodes { name } } }')
    found["projects(sort)"] = await measure(client, "{ projects(sort: NAME) { nodes { name } } }")
    found["projects(sort, search)"] = await measure(
        client, '{ projects(sort: NAME, search: "fir") { nodes { name } } }'
    )
    found["projects with canvas"] = await measure(client, "{ projects { nodes { name canvasData } } }")
    made = (await client.ask("{ projects(first: 1) { nodes { id } } }"))["projects"]["nodes"][0]["id"]
    found["project"] = await measure(client, "query ($id: ID!) { project(id: $id) { name } }", id=made)
    found["updateProject, texts"] = await measure(client, UPDATE, id=made, input={"name": "n"})
    found["updateProject, canvas"] = await measure(client, UPDATE, id=made, input={"canvasData": {"a": 1}, "name": "n"})
    found["deleteProject"] = await measure(client, DELETE, id=made)
    found["restoreProject"] = await measure(client, RESTORE, id=made)
    await measure(client, DELETE, id=made)
    found["trash"] = await measure(client, "{ trash { nodes { name deletedAt } } }")
    found["purgeProject"] = await measure(client, "mutation ($id: ID!) { purgeProject(id: $id) }", id=made)
    found["signOut"] = await measure(client, "mutation { signOut }")
    bob = await Client(client.app).join("bob@example.com")
    await client.app._app.state.feed.caught_up()  # type: ignore[attr-defined]  # so that `me` is what makes him known
    bob_id = ObjectId((await bob.ask("{ me { id } }"))["me"]["id"])
    await database.raw["projects"].insert_one({"userId": bob_id, "name": "theirs"})
    found["createProject, the first after another application's"] = await measure(bob, CREATE, name="first")
    return found


@pytest.mark.slow
async def test_each_operation_has_the_documented_cost(costs: dict[str, list[RoundTrip]]) -> None:
    for name in SIDE_BY_SIDE:  # side by side: in no order
        costs[name] = sorted(costs[name])
    expected = {name: sorted(trips) if name in SIDE_BY_SIDE else trips for name, trips in COSTS.items()}
    assert costs == expected


def test_the_table_keeps_the_promised_bounds() -> None:
    assert len(COSTS["me with everything"]) <= 3
    assert len(COSTS["projects(search)"]) <= 1
    assert len(COSTS["createProject, the first"]) <= 6
    assert len(COSTS["createProject"]) <= 6
