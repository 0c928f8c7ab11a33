"""Every query of a journey is served by an index, and reads little.

The commands are those that the driver sends; each is explained against collections full of other people's
documents.
"""

import copy
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pyotp
import pytest
from bson import ObjectId
from pymongo import monitoring
from tests.serving import PASSWORD, Client, serve
from tests.shards import VERBS, Command, verb, walk

from ximler.accounts import administration, closing, roles
from ximler.accounts.keyring import Keyring
from ximler.audit import search as audit
from ximler.audit.erasure import erase
from ximler.billing.seeds import SEEDS
from ximler.core.actor import Actor
from ximler.core.settings import Settings
from ximler.database import Database, connection, seeding, sync
from ximler.metering.ledger import events, settlement
from ximler.privacy import erasure
from ximler.projects import search
from ximler.schema.plan import Plan
from ximler.schema.user import User

OTHERS = 400
OWN = 300
# (verb, collection) → why it may scan a whole collection.
SCANS: dict[tuple[str, str], str] = {}
# (verb, collection) → why it may examine more documents than a page has.
WIDE = {
    ("find", "projects"): "a search for frequent words walks the user's own list",
    ("find", "auditlogs"): "all of a person's entries are read when they are erased, and a resource's are put in order",
    ("aggregate", "projects"): "a search reads the user's own projects with its longest word, and some without terms",
    ("aggregate", "users"): "a user's own projects are counted while they have no gauge",
}


class Capture(monitoring.CommandListener):
    def __init__(self) -> None:
        self.commands: list[Command] = []

    def started(self, event: monitoring.CommandStartedEvent) -> None:
        if isinstance(event.command.get(event.command_name), int):
            return  # the change stream, which reads the whole database's oplog
        if event.command_name in VERBS and event.command.get("sort") != {"_id": -1}:  # not the tests' look at a mailbox
            command = copy.deepcopy(dict(event.command))
            for part in command.get("updates", [None]):  # the server explains one at a time
                self.commands.append(command if part is None else command | {"updates": [part]})

    def succeeded(self, event: monitoring.CommandSucceededEvent) -> None: ...

    def failed(self, event: monitoring.CommandFailedEvent) -> None: ...


@pytest.fixture
async def capture(database: Database, settings: Settings, mongodb_uri: str, monkeypatch: pytest.MonkeyPatch) -> Capture:
    """The commands of one journey through the application, and of an operator's day."""
    capture = Capture()
    ours = connection.listeners
    monkeypatch.setattr(connection, "listeners", lambda *args: [*ours(*args), capture])
    await crowd(database)
    own = await connection.connect(mongodb_uri, name=database.name)
    async with serve(
        Settings(**{name: getattr(settings, name) for name in ("secret_key", "argon2_memory_kib", "argon2_time_cost")},
                 database=database.name, environment="development", worker=False),
        mongodb_uri,
    ) as app:  # fmt: skip
        capture.commands.clear()
        await customer(Client(app), database)
        await operator(own, settings)
    await own.close()
    return capture


async def crowd(database: Database) -> None:
    """Other people, with everything they have."""
    now = database.clock.now()
    people = [ObjectId() for _ in range(OTHERS)]
    soon = now + timedelta(days=1)
    rows: dict[str, list[dict[str, Any]]] = {
        "users": [{"_id": p, "name": "n", "email": f"{p}@example.com", "password": "-", "createdAt": now} for p in people],
        "sessions": [{"_id": p.binary, "userId": p, "expiresAt": soon, "createdAt": now} for p in people],
        "registrations": [
            {"_id": p, "name": "n", "email": "e", "password": "-", "expiresAt": soon, "createdAt": now} for p in people
        ],
        "credentials": [{"_id": p, "recoveryCodes": ["-"], "createdAt": now, "updatedAt": now} for p in people],
        "emailchanges": [{"_id": p, "requestId": p, "email": "e", "attempts": 0, "expiresAt": soon} for p in people],
        "gauges": [{"_id": p, "projects": 3, "storageBytes": 30, "createdAt": now, "updatedAt": now} for p in people],
        "subscriptions": [
            {"userId": p, "planId": "pro", "status": status, "startDate": now, "price": 29}
            for p in people
            for status in ("ACTIVE", "CANCELLED")
        ],
        "usage": [
            {"userId": p, "resourceType": "apiCalls", "amount": 1, "periodStart": now, "periodEnd": soon}
            for p in people
            for _ in range(2)
        ],
        "notifications": [
            {"userId": p, "type": "PRODUCT", "title": "t", "message": "m", "createdAt": now}
            for p in people
            for _ in range(3)
        ],
        "projects": [
            {"userId": p, "name": "bridge", "storageSize": 10, "createdAt": now}
            | {"searchTerms": ["bridge"], "searchKeys": search.keys(["bridge"])}
            for p in people
            for _ in range(3)
        ],
    }  # fmt: skip
    rows["auditlogs"] = [
        {"userId": p, "action": f"a.b.{n % 2}", "resource": "projects", "resourceId": str(n), "createdAt": now}
        for p in people
        for n in range(3)
    ]
    for name, documents in rows.items():
        await database.raw[name].insert_many(documents)
    for n in range(20):
        plan = Plan.__struct_fields__ and {
            "id": f"old{n}",
            "name": "n",
            "price": 1,
            "interval": "MONTH",
            "active": False,
        }
        await database.raw["plans"].insert_one(plan | {"limits": {"projects": 1, "storage": 1, "apiCalls": 1}})


async def customer(client: Client, database: Database) -> None:
    await client.join("ada@example.com")
    user_id = ObjectId((await client.ask("{ me { id } }"))["me"]["id"])
    now = database.clock.now()
    await database.raw["subscriptions"].insert_one(
        {"userId": user_id, "planId": "enterprise", "status": "ACTIVE", "startDate": now, "price": 99}
    )
    await database.raw["projects"].insert_many(
        [
            {"userId": user_id, "name": f"own {n}", "storageSize": 1, "createdAt": now - timedelta(seconds=n)}
            | ({"searchTerms": (own := search.terms(f"own w{n}")), "searchKeys": search.keys(own)} if n % 30 else {})
            for n in range(OWN)
        ]
    )
    everything = """{
      me { name subscription { plan { name } } projects(first: 5) { nodes { name canvasData settings } } usage { used } }
      plans { id }
    }"""
    await client.ask(everything)
    made = (await client.create("Bridge", description="of sighs", canvasData={"a": 1}))["createProject"]["id"]
    await client.create("Bridge again")
    await client.ask(everything)
    page = await client.ask("{ projects { pageInfo { endCursor } } }")
    after = page["projects"]["pageInfo"]["endCursor"]
    for words in (None, "brid", "bri sig", "nothing of the kind"):
        await client.ask(
            "query ($s: String, $a: String) { projects(search: $s, after: $a) { nodes { id } } }", s=words, a=after
        )
        await client.ask("query ($s: String) { projects(search: $s) { nodes { id } } }", s=words)
    for sort in ("CREATED", "UPDATED", "NAME"):
        sorted_by = (
            "query ($s: String, $a: String) { projects(sort: SORT, search: $s, after: $a) { pageInfo { endCursor } } }"
        )
        for words in (None, "own w1"):
            page = await client.ask(sorted_by.replace("SORT", sort), s=words)
            await client.ask(sorted_by.replace("SORT", sort), s=words, a=page["projects"]["pageInfo"]["endCursor"])
    await client.ask("query ($id: ID!) { project(id: $id) { name canvasData settings } }", id=made)
    update = "mutation ($id: ID!, $input: UpdateProjectInput!) { updateProject(id: $id, input: $input) { id } }"
    await client.ask(update, id=made, input={"name": "Bridges"})
    await client.ask(update, id=made, input={"canvasData": {"a": [1, 2]}})
    await client.ask(update, id=made, input={"location": {"longitude": 13.4, "latitude": 52.5}})
    nearby = """{ projects(near: {longitude: 13, latitude: 52, maxKm: 100}) {
      edges { distanceKm node { name location { longitude } } } } }"""
    (edge,) = (await client.ask(nearby))["projects"]["edges"]
    assert 60 < edge["distanceKm"] < 65
    assert edge["node"] == {"name": "Bridges", "location": {"longitude": 13.4}}
    box = "{ projects(within: {box: {west: 13, south: 52, east: 14, north: 53}}) { edges { distanceKm node { id } } } }"
    assert (await client.ask(box))["projects"]["edges"] == [{"distanceKm": None, "node": {"id": made}}]
    version = "mutation ($id: ID!) { createProjectVersion(projectId: $id) { id canvasData changes } }"
    kept = (await client.ask(version, id=made))["createProjectVersion"]["id"]
    await client.ask("query ($id: ID!) { projectVersions(projectId: $id) { nodes { name } } }", id=made)
    for rest in (
        "restoreProjectVersion(projectId: $id, id: $v) { id }",
        "deleteProjectVersion(projectId: $id, id: $v)",
    ):
        await client.ask(f"mutation ($id: ID!, $v: ID!) {{ {rest} }}", id=made, v=kept)
    share = 'shareProject(projectId: $id, email: "guest@example.com", role: EDITOR) { email }'
    for rest in (share, "createProjectLink(projectId: $id) { token }", "leaveProject(projectId: $id)"):
        await client.ask(f"mutation ($id: ID!) {{ {rest} }}", id=made)
    await client.ask("query ($id: ID!) { projectShares(projectId: $id) { email } }", id=made)
    await client.ask("query ($id: ID!) { projectLinks(projectId: $id) { nodes { id } } }", id=made)
    await client.ask('{ sharedProjects { nodes { id } } project(id: "000000000000000000000000") { id } }')
    for each in ("delete", "restore"):
        await client.ask(f"mutation ($id: ID!) {{ {each}Project(id: $id) {{ id canvasData }} }}", id=made)
    await client.ask("mutation ($id: ID!) { deleteProject(id: $id) { id } }", id=made)
    trash = "query ($after: String) { trash(first: 1, after: $after) { nodes { id } pageInfo { endCursor } } }"
    end = (await client.ask(trash))["trash"]["pageInfo"]["endCursor"]
    await client.ask(trash, after=end)
    await client.ask("mutation ($id: ID!) { purgeProject(id: $id) }", id=made)
    await client.ask("mutation { emptyTrash }")
    await client.ask("{ usage { used } quota(resource: apiCalls) { used projected } }")
    span = f'from: "{now:%Y-%m-%d}T00:00:00Z", to: "{now:%Y-%m-%d}T23:59:59Z"'
    for by in ("HOUR", "DAY", "MONTH"):
        await client.ask(f"{{ usageSeries(resource: apiCalls, {span}, by: {by}) {{ amount }} }}")
    await read_inbox(client, database, user_id)
    await use_keys(client)
    await client.sign_in("ada@example.com")  # the session so far stays, so that explaining finds it
    await client.ask("mutation { signOut }")
    await client.sign_in("ada@example.com")
    await client.ask("mutation { closeAccount { erasedAt } }")
    reopen = 'mutation ($p: String!) { reopenAccount(email: "ada@example.com", password: $p) { token } }'
    client.token = None  # it has ended with the account
    assert (await client.ask(reopen, p=PASSWORD))["reopenAccount"]["token"]
    await client.sign_in("ada@example.com", "the wrong password")
    await client.sign_in("nobody@example.com")
    await secure(client, database, user_id)


async def secure(client: Client, database: Database, user_id: ObjectId) -> None:
    """Second factor, another address, another password: each with what is refused on the way."""
    await client.sign_in("ada@example.com")
    sign_in = 'mutation ($code: String) {{ signIn(email: "{}", password: "{}", code: $code) {{ token }} }}'
    sign_in = sign_in.format("ada@example.com", PASSWORD)
    await client.ask('mutation { updateProfile(name: "Ada L.") { id } }')
    await client.ask("mutation { updateNotificationSettings(input: {push: {enabled: true}}) { id } }")
    secret = (await client.ask("mutation { beginTotp { secret } }"))["beginTotp"]["secret"]
    confirm = "mutation ($code: String!) { confirmTotp(code: $code) }"
    codes = (await client.ask(confirm, code=pyotp.TOTP(secret).at(database.clock.now())))["confirmTotp"]
    later = pyotp.TOTP(secret).at(database.clock.now() + timedelta(seconds=30))
    for code in (None, "000000", later, codes[0], codes[0]):
        await client.ask(sign_in, code=code)
    await client.ask("{ secondFactor { recoveryCodesLeft } }")
    await client.ask(
        "mutation ($p: String!, $c: String!) { reauthenticate(password: $p, code: $c) }", p=PASSWORD, c=codes[1]
    )
    await client.ask("mutation { regenerateRecoveryCodes }")
    await client.ask('mutation { requestEmailChange(email: "first@example.com") { accepted } }')
    await client.ask("mutation { cancelEmailChange }")
    await client.ask('mutation { requestEmailChange(email: "second@example.com") { accepted } }')
    waiting = await database.raw["emailchanges"].find_one({"_id": user_id})
    assert waiting is not None
    state = client.app._app.state  # type: ignore[attr-defined]  # the application inside `Requests`
    token = state.keyring.sign("email", waiting["requestId"])
    confirm = "mutation ($t: String!, $p: String!) { confirmEmailChange(token: $t, password: $p) }"
    for password in ("a wrong one", PASSWORD, PASSWORD):
        await client.ask(confirm, t=token, p=password)
    reset = state.keyring.sign("reset", ObjectId())
    await client.ask('mutation ($t: String!) { resetPassword(token: $t, password: "another long password") }', t=reset)
    await client.ask("mutation { revokeOtherSessions }")
    await client.ask("mutation { disableTotp }")


async def use_keys(client: Client) -> None:
    make = 'mutation { createApiKey(input: {name: "k", permissions: ["account:read"]}) { secret key { id } } }'
    made = (await client.ask(make))["createApiKey"]
    await client.ask("{ apiKeys { id } }")
    await client.ask('mutation ($id: ID!) { updateApiKey(id: $id, input: {name: "n"}) { id } }', id=made["key"]["id"])
    program = Client(client.app, token=made["secret"])
    await program.ask("{ me { id } }")
    await client.app._app.state.meter.sweep()  # type: ignore[attr-defined]  # inside `Requests`
    await client.ask("mutation ($id: ID!) { rotateApiKey(id: $id) { key { id } } }", id=made["key"]["id"])
    await client.ask("mutation ($id: ID!) { revokeApiKey(id: $id) { id } }", id=made["key"]["id"])


async def read_inbox(client: Client, database: Database, user_id: ObjectId) -> None:
    now = database.clock.now()
    read = {"readAt": now}
    await database.raw["notifications"].insert_many(
        [
            {
                "userId": user_id,
                "type": "PRODUCT",
                "title": "t",
                "message": "m",
                "createdAt": now - timedelta(seconds=n),
            }
            | (read if n % 3 else {})
            for n in range(OWN)
        ]
    )
    query = """query ($a: String, $u: Boolean) {
      notifications(first: 5, after: $a, unread: $u) { nodes { id } pageInfo { endCursor } }
    }"""
    for unread in (False, True):
        shown = (await client.ask(query, u=unread))["notifications"]
        await client.ask(query, a=shown["pageInfo"]["endCursor"], u=unread)
    await client.ask("{ me { unreadNotifications } }")
    await client.ask("mutation ($id: ID!) { markNotificationRead(id: $id) { id } }", id=shown["nodes"][0]["id"])
    await client.ask("mutation ($id: ID!) { markNotificationRead(id: $id) { id } }", id=shown["nodes"][0]["id"])
    await client.ask("mutation { markAllNotificationsRead }")


async def operator(database: Database, settings: Settings) -> None:
    keyring = Keyring(settings)
    actor = Actor(kind="operator", via="cli")
    somebody = await database.raw["users"].find_one({"email": {"$ne": "ada@example.com"}}, sort=[("_id", -1)])
    assert somebody is not None
    since = database.clock.now() - timedelta(hours=1)
    for given in (
        {}, {"user_id": somebody["_id"]}, {"action": "projects.project.created"}, {"resource": "projects"},
        {"resource": "projects", "resource_id": "7"}, {"user_id": somebody["_id"], "action": "a.b.c", "since": since},
    ):  # fmt: skip
        entries = await audit.page(database, actor, **given, first=5)
        if entries.has_next:
            await audit.page(
                database, actor, **given, first=5, after=(entries.items[-1].created_at, entries.items[-1].id)
            )
    await erase(database, somebody["_id"])
    for n in range(2):  # the first makes the quota and the ledger's row, the second adds to them
        told = events.Event(id=str(n), user_id=str(somebody["_id"]), at=database.clock.now())
        await events.record(database, actor, [told])
        await settlement.settle(database)
    await administration.create(
        database, keyring, actor, name="Bob", email="bob@example.com", password="long enough to be one"
    )
    page = await administration.page(database, actor, first=5)
    assert page.has_next
    await administration.page(database, actor, first=5, after=(page.items[-1].user.created_at, page.items[-1].user.id))
    for text in ("bob", "bob@example.com", str(page.items[-1].user.id)):
        await administration.page(database, actor, search=text, first=5)
    (bob,) = (user.id for user in await database.users.find({"email": "bob@example.com"}))
    await roles.grant(database, actor, bob, "operator")
    await administration.lock(database, actor, bob, reason="a test")
    await administration.unlock(database, actor, bob)
    for look in (
        administration.get,
        administration.verify,
        administration.open_sessions,
        administration.revoke_sessions,
        administration.history,
    ):
        await look(database, actor, bob)
    await roles.withdraw(database, actor, bob)
    keyring.close()
    gone = await database.users.insert(User(name="Eve", email="eve@example.com", password="-"))
    now = database.clock.now()
    await database.users.patch({"_id": gone.id}, {"$set": {"deletedAt": now, "closedAt": now}})
    assert await erasure.erase(closing.Closed(user_id=gone.id, closed_at=now), database=database)
    await sync.check_version(database)
    await seeding.insert(database, SEEDS)


@pytest.mark.slow
async def test_every_query_is_served_by_an_index_and_reads_little(capture: Capture, database: Database) -> None:
    assert {(verb(c), c[verb(c)]) for c in capture.commands} >= {
        ("find", "users"), ("find", "projects"), ("find", "plans"), ("find", "subscriptions"),
        ("aggregate", "sessions"), ("aggregate", "users"), ("aggregate", "projects"),
        ("update", "gauges"), ("update", "users"), ("findAndModify", "projects"), ("delete", "sessions"),
    }  # fmt: skip
    problems = []
    for command in (single for whole in capture.commands for single in statements(whole)):
        place = verb(command), command[verb(command)]
        for single in singly(command):
            explained = await database.raw.command("explain", bare(single), verbosity="executionStats")
            if place not in SCANS and any(scans(explained)):
                problems.append(f"{place} scans: {shown(command)}")
            most = OWN + 10 if place in WIDE else 25  # of the user's own, never of others' 1,200
            if (read := max(examined(explained), default=0)) > most:
                problems.append(f"{place} reads {read} documents: {shown(command)}")
    assert not problems, "\n".join(sorted(set(problems)))


@pytest.mark.slow
async def test_a_scan_is_found_out_wherever_it_hides(database: Database) -> None:
    """The rule itself: what it must refuse."""
    await crowd(database)
    anybody = await database.raw["users"].find_one({})
    assert anybody is not None
    one = {"$match": {"_id": anybody["_id"]}}
    plain = {"$lookup": {"from": "usage", "localField": "_id", "foreignField": "amount", "as": "u"}}
    inner = {"$lookup": plain["$lookup"] | {"pipeline": [{"$match": {"amount": 1}}]}}
    for command in (
        {"find": "users", "filter": {"avatar": "n"}},
        {"update": "users", "updates": [{"q": {"avatar": "n"}, "u": {"$set": {"avatar": "m"}}}]},
        {"findAndModify": "users", "query": {"avatar": "n"}, "update": {"$set": {"avatar": "m"}}},
        {"aggregate": "users", "pipeline": [one, plain], "cursor": {}},
        {"aggregate": "users", "pipeline": [one, inner], "cursor": {}},
        {"aggregate": "users", "pipeline": [one, {"$set": {"a": 1}}, inner], "cursor": {}},
    ):
        explained = await database.raw.command("explain", command, verbosity="executionStats")
        assert any(scans(explained)), command


def singly(command: Command) -> Iterator[Command]:
    """A batch of writes, one by one: the server explains no more than one at a time."""
    statements = {"update": "updates", "delete": "deletes"}.get(verb(command))
    if statements is None:
        yield command
    else:
        yield from ({**command, statements: [statement]} for statement in command[statements])


def shown(command: Command) -> str:
    return str(
        {k: v for k, v in bare(command).items() if k in ("filter", "pipeline", "updates", "deletes", "query", "sort")}
    )


def bare(command: Command) -> Command:
    """Without what belongs to its session, transaction and connection."""
    extra = {
        "lsid",
        "txnNumber",
        "autocommit",
        "startTransaction",
        "readConcern",
        "writeConcern",
        "apiVersion",
        "ordered",
    }
    return {k: v for k, v in command.items() if k not in extra and not k.startswith("$")}


def statements(command: Command) -> Iterator[Command]:
    """A write of several statements, one by one: the server explains no more at once."""
    name = {"update": "updates", "delete": "deletes"}.get(verb(command))
    for statement in command[name] if name else [None]:
        yield {**command, name: [statement]} if name else command


def scans(explained: Any) -> Iterator[str]:
    for part in walk(explained):
        if part.get("stage") == "COLLSCAN" or part.get("collectionScans") or part.get("strategy") == "NestedLoopJoin":
            yield str(part)


def examined(explained: Any) -> Iterator[int]:
    for part in walk(explained):
        yield int(part.get("totalDocsExamined", 0))
