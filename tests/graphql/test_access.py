"""Every field of Query and Mutation × everybody who has no business with it: nobody reads or changes what is
another's.

Queries are generated from the schema, with every field of each result. A new root field needs an entry in
`tests.graphql.fields`.
"""

from datetime import timedelta
from typing import Any

import bson
import msgspec
import pytest
from bson import ObjectId
from graphql import GraphQLObjectType, get_named_type, is_object_type, is_required_argument
from tests.contents import contents
from tests.deleting import soft_delete
from tests.graphql.fields import FIELDS, MARK
from tests.serving import PASSWORD, Client

from ximler.app import schema
from ximler.database import Database
from ximler.graphql.context import OPEN
from ximler.notifications import inbox
from ximler.schema.billing_account import BILLING_ACCOUNTS, BillingAccount, Details, Terms
from ximler.schema.checkout import CHECKOUTS, Checkout
from ximler.schema.invoice import INVOICES, Invoice
from ximler.schema.payment import Payment
from ximler.schema.subscription import Subscription

pytestmark = pytest.mark.slow

SCHEMA = schema().core
# Attempts are counted and audited in any case, and the process writes its heartbeat.
COUNTED = frozenset({"throttles", "refusals", "auditlogs", "meters"})


class Victim(msgspec.Struct):
    """Somebody with something of everything, each part marked."""

    user_id: ObjectId
    email: str
    client: Client
    project: str
    deleted_project: str
    cursor: str
    notification: str
    api_key: str
    checkout: str
    invoice: str
    version: str
    asset: str
    link: str


def coordinates() -> list[str]:
    roots = (SCHEMA.query_type, SCHEMA.mutation_type)  # `test_subscriptions` has those of streams
    return [f"{root.name}.{name}" for root in roots if root is not None for name in root.fields]


def test_every_root_field_has_an_entry() -> None:
    assert set(coordinates()) == set(FIELDS)


@pytest.fixture
async def victim(client: Client, database: Database) -> Victim:
    email = f"{MARK}@example.com".lower()
    await client.register(email)
    await client.join(email)
    user_id = ObjectId((await client.ask("{ me { id } }"))["me"]["id"])
    content = {
        "description": MARK,
        "canvasData": {MARK: MARK},
        "settings": {MARK: MARK},
        "tags": [MARK],
        "starred": True,
    }
    kept, gone = [(await client.create(MARK, **content))["createProject"]["id"] for _ in range(2)]
    kept_version = await client.ask(
        "mutation ($id: ID!, $n: String) { createProjectVersion(projectId: $id, name: $n) { id } }", id=kept, n=MARK
    )
    kept_asset = await client.http.post(
        f"/v1/projects/{kept}/assets?name={MARK}", content=b"x", headers={"Authorization": f"Bearer {client.token}"}
    )
    for where in (kept, gone):
        await client.ask(
            'mutation ($p: ID!) { shareProject(projectId: $p, email: "guest@example.com", role: EDITOR) { email } }',
            p=where,
        )
    kept_link = await client.ask("mutation ($p: ID!) { createProjectLink(projectId: $p) { link { id } } }", p=kept)
    await client.ask("mutation ($id: ID!) { deleteProject(id: $id) { id } }", id=gone)
    await database.subscriptions.insert(
        Subscription(user_id=user_id, plan_id=MARK, status="ACTIVE", start_date=database.clock.now(), price=4711)
    )
    page = await client.ask("{ projects { pageInfo { endCursor } } }")
    user = await database.users.get(user_id)
    told = await inbox.notify(database, user, "PRODUCT", MARK, MARK, {MARK: MARK})
    made = await client.ask(
        'mutation ($n: String!) { createApiKey(input: {name: $n, permissions: ["account:read"]}) { key { id } } }',
        n=MARK,
    )
    checkout, invoice = await bills(database, user_id)
    return Victim(
        user_id,
        email,
        client,
        kept,
        gone,
        page["projects"]["pageInfo"]["endCursor"],
        str(told.id),
        made["createApiKey"]["key"]["id"],
        checkout,
        invoice,
        kept_version["createProjectVersion"]["id"],
        kept_asset.json()["id"],
        kept_link["createProjectLink"]["link"]["id"],
    )


async def bills(database: Database, user_id: ObjectId) -> tuple[str, str]:
    """A checkout, an invoice, a payment and a balance of the user, each marked; returns the ids of the first
    two.
    """
    now = database.clock.now()
    terms = Terms(plan_id="pro", plan_name=MARK, price_minor=4711, currency="USD", interval="MONTH")
    checkout = await database[CHECKOUTS].insert(
        Checkout(id=f"co_{MARK}", user_id=user_id, terms=terms, return_url="http://localhost/", expires_at=now)
    )
    invoice = await database[INVOICES].insert(
        Invoice(
            key=MARK, user_id=user_id, subscription_id=ObjectId(), kind="RENEWAL", status="PAID", year=now.year, serial=1,
            issued_at=now, currency="USD", plan_id="pro", buyer_name=MARK,
            lines=[{"kind": "PLAN", "description": MARK, "amount_minor": 4711, "included": False}],
        )
    )  # fmt: skip
    payment = Payment(user_id=user_id, amount=47.11, status="PAID", description=MARK, invoice_id=invoice.id)
    await database.payments.insert(payment)
    await database[BILLING_ACCOUNTS].insert(
        BillingAccount(id=user_id, balances={"USD": 4711}, details=Details(name=MARK))
    )
    return checkout.id, str(invoice.id)


PASSWORDS = frozenset({"Mutation.changePassword", "Mutation.reauthenticate"})
OPERATORS = {name for name, field in FIELDS.items() if field.stranger == "FORBIDDEN"} - PASSWORDS


@pytest.mark.parametrize("coordinate", [name for name in coordinates() if name not in OPERATORS])
async def test_users_cannot_read_or_change_data_of_others(
    coordinate: str, victim: Victim, ada: Client, database: Database
) -> None:
    await others_see_and_do_nothing(coordinate, victim, ada, database)


async def test_fields_of_operators_are_refused_and_change_nothing(
    victim: Victim, ada: Client, database: Database
) -> None:
    """With one victim, which every refusal leaves unchanged."""
    for coordinate in sorted(OPERATORS):
        await others_see_and_do_nothing(coordinate, victim, ada, database)


async def others_see_and_do_nothing(coordinate: str, victim: Victim, ada: Client, database: Database) -> None:
    field = FIELDS[coordinate]
    anonymous = Client(victim.client.app)
    for arguments in field.arguments:
        query = ask_for_everything(coordinate, arguments, victim)
        for caller, code in ((anonymous, field.anonymous), (ada, field.stranger)):
            await caller_sees_and_does_nothing(caller, query, code, field.changes, victim, database)


async def caller_sees_and_does_nothing(
    caller: Client, query: str, code: str | None, changes: frozenset[str], victim: Victim, database: Database
) -> None:
    before = await contents(database)
    answer = await caller.ask(query)
    after = await contents(database)
    said = {error["extensions"]["code"] for error in answer.errors}
    assert said == ({code} if code else set()), (query, answer.errors)
    assert MARK.lower() not in shown(answer.data).lower(), query
    assert str(victim.user_id) not in shown(answer.data), query
    changed = {name for name in before if before[name] != after[name]}
    assert changed - COUNTED <= (changes if code is None else set()), query
    assert await of(victim, database, before) == await of(victim, database, after), query


TOKENS = ["expired", "signed out", "deleted user", "garbage", "almost right", "empty", "basic", "no scheme"]


@pytest.mark.parametrize("kind", TOKENS)
async def test_an_invalid_token_is_rejected_but_for_fields_that_are_open_to_everybody(
    kind: str, victim: Victim, database: Database
) -> None:
    """The token of a session that has ended must not keep anybody from signing in again. A malformed header
    is an error of the client's in any case.
    """
    token = victim.client.token
    header = f"Bearer {token}"
    match kind:
        case "expired":
            past = database.clock.now() - timedelta(seconds=1)
            await database.raw["sessions"].update_many({"userId": victim.user_id}, {"$set": {"expiresAt": past}})
        case "signed out":
            await victim.client.ask("mutation { signOut }")
        case "deleted user":
            await soft_delete(database.users, {"_id": victim.user_id})
        case "garbage":
            header = f"Bearer {'x' * 43}"
        case "almost right":
            assert token is not None
            header = f"Bearer {token[:-1]}{'A' if token[-1] != 'A' else 'E'}"
        case "empty":
            header = "Bearer "
        case "basic":
            header = f"Basic {token}"
        case "no scheme":
            assert token is not None
            header = token
    await victim.client.app._app.state.feed.caught_up()  # type: ignore[attr-defined]  # the application inside `Requests`
    before = await contents(database)
    if kind == "expired":  # the server removes it within a minute
        del before["sessions"]
    malformed = kind in ("empty", "basic", "no scheme")
    closed = {each: field for each, field in FIELDS.items() if malformed or each.partition(".")[2] not in OPEN}
    for coordinate, field in closed.items():
        for arguments in field.arguments:
            query = ask_for_everything(coordinate, arguments, victim)
            response = await victim.client.http.post(
                "/graphql", json={"query": query}, headers={"Authorization": header}
            )
            answer = Client.read(response)
            assert response.status_code == 401, coordinate
            assert response.headers["www-authenticate"] == "Bearer"
            assert answer.data is None
            assert answer.errors[0]["extensions"]["kind"] == "UNAUTHENTICATED"
    after = await contents(database)
    assert {name: after[name] for name in before} == before


async def test_owners_can_read_their_data(victim: Victim) -> None:
    """The matrix means something only if the same questions show the owner what others must not see."""
    for coordinate, arguments in (
        ("Query.me", ""),
        ("Query.projects", ""),
        ("Query.projects", f'search: "{MARK}"'),
        ("Query.project", 'id: "{project}"'),
        ("Query.notifications", ""),
        ("Query.apiKeys", ""),
        ("Mutation.updateApiKey", 'id: "{api_key}", input: {allowedAddresses: []}'),
        ("Mutation.markNotificationRead", 'id: "{notification}"'),
        ("Query.checkout", 'id: "{checkout}"'),
        ("Query.invoices", ""),
        ("Query.invoice", 'id: "{invoice}"'),
        ("Query.payments", ""),
        ("Query.billingDetails", ""),
        ("Query.trash", ""),
        ("Query.projectAssets", 'projectId: "{project}"'),
        ("Mutation.updateProject", 'id: "{project}", input: {settings: {a: 1}}'),
        ("Mutation.deleteProject", 'id: "{project}"'),
        ("Mutation.restoreProject", 'id: "{deleted_project}"'),
    ):
        answer = await victim.client.ask(ask_for_everything(coordinate, arguments, victim))
        assert answer.errors == []
        assert MARK in shown(answer.data), coordinate


async def test_signing_in_returns_a_session_only_for_the_right_password(victim: Victim, ada: Client) -> None:
    """Somebody signed in who signs in as another sees the other's account, and nothing of theirs by the old
    session.
    """
    sign_in = f'signIn(email: "{victim.email}", password: "{PASSWORD}")'
    answer = await ada.ask(f"mutation {{ {sign_in} {{ token user {{ email }} }} }}")
    assert answer["signIn"]["user"]["email"] == victim.email
    mixed = await ada.ask(f"mutation {{ {sign_in} {{ user {{ projects {{ nodes {{ name }} }} }} }} }}")
    assert mixed.code == "NOT_FOUND"
    assert mixed.data == {"signIn": {"user": None}}


def ask_for_everything(coordinate: str, arguments: str, victim: Victim) -> str:
    """A query for every field that the answer can have."""
    root, name = coordinate.split(".")
    kind = SCHEMA.type_map[root]
    assert isinstance(kind, GraphQLObjectType)
    for field in (
        "project", "deleted_project", "cursor", "email", "user_id", "notification", "api_key", "checkout", "invoice",
        "version",
        "asset", "link",
    ):  # fmt: skip
        arguments = arguments.replace(f"{{{field}}}", str(getattr(victim, field)))
    if "first" in kind.fields[name].args and "first:" not in arguments:
        arguments += " first: 2"  # canvases are dear
    given = f"({arguments})" if arguments else ""
    return f"{root.lower()} {{ {name}{given} {selection(get_named_type(kind.fields[name].type), ())} }}"


def selection(kind: Any, above: tuple[str, ...]) -> str:
    if not is_object_type(kind):
        return ""
    parts = []
    for name, field in kind.fields.items():
        inner = get_named_type(field.type)
        if inner.name in above or any(is_required_argument(argument) for argument in field.args.values()):
            continue
        page = "(first: 2)" if "first" in field.args else ""
        parts.append(f"{name}{page} {selection(inner, (*above, kind.name))}")
    return f"{{ {' '.join(parts)} }}"


def shown(data: Any) -> str:
    return msgspec.json.encode(data).decode()


async def of(victim: Victim, database: Database, everything: dict[str, list[bytes]]) -> list[bytes]:
    """What is the victim's among them."""
    return [
        raw
        for name, documents in everything.items()
        if name not in COUNTED
        for raw in documents
        if victim.user_id in (bson.decode(raw).get("_id"), bson.decode(raw).get("userId"))
    ]


async def test_members_reach_no_more_than_the_shared_project(victim: Victim, ada: Client, database: Database) -> None:
    """Every other object of the owner stays NOT_FOUND, and so does the project for
    fields that are the owner's alone."""
    share = 'mutation ($p: ID!, $r: ShareRole!) {{ shareProject(projectId: $p, email: "{}", role: $r) {{ role }} }}'
    mail = (await ada.ask("{ me { email } }"))["me"]["email"]
    for role, expected in (("READER", "FORBIDDEN"), ("EDITOR", None)):
        answer = await victim.client.ask(share.format(mail), p=victim.project, r=role)
        assert answer.errors == []
        for coordinate in ("Query.project", "Query.projectVersions", "Query.projectVersion", "Query.projectAssets"):
            arguments = FIELDS[coordinate].arguments
            answers = [(await ada.ask(ask_for_everything(coordinate, each, victim))).code for each in arguments]
            assert answers == [None, *["NOT_FOUND"] * (len(arguments) - 1)], coordinate
        for coordinate in ("Mutation.createProjectVersion", "Mutation.updateProjectVersion"):
            query = ask_for_everything(coordinate, FIELDS[coordinate].arguments[0], victim)
            assert (await ada.ask(query)).code == expected, coordinate
        before = await contents(database)
        for coordinate in OWNERS_ALONE:
            for arguments in FIELDS[coordinate].arguments:
                answer = await ada.ask(ask_for_everything(coordinate, arguments, victim))
                assert answer.code == "NOT_FOUND", coordinate
        after = await contents(database)
        assert {name for name in before if before[name] != after[name]} <= COUNTED
    await victim.client.ask("mutation ($id: ID!) { deleteProject(id: $id) { id } }", id=victim.project)
    for coordinate in ("Query.project", "Query.projectVersions", "Query.projectAssets", "Mutation.updateProject"):
        for arguments in FIELDS[coordinate].arguments:
            answer = await ada.ask(ask_for_everything(coordinate, arguments, victim))
            assert answer.code == "NOT_FOUND", coordinate


OWNERS_ALONE = (
    "Mutation.deleteProject",
    "Mutation.restoreProject",
    "Mutation.purgeProject",
    "Mutation.duplicateProject",
    "Mutation.shareProject",
    "Mutation.unshareProject",
    "Query.projectShares",
    "Query.projectLinks",
    "Mutation.createProjectLink",
    "Mutation.revokeProjectLink",
)
