"""Topic `journeys`: the database commands of each operation, and its duration."""

import re
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from statistics import median
from typing import Any
from uuid import uuid4

from bson import ObjectId

from bench.client import CONFIRM, PASSWORD, SIGN_IN, Client, Town, town
from bench.report import Figure, Table, ms
from bench.setup import Setup
from ximler.database.monitoring import RoundTrip, round_trips
from ximler.schema.subscription import Subscription

__all__ = ["run"]

ME = """{ me { id name email
  subscription { status plan { name price limits { projects storage apiCalls } } }
  projects { nodes { id name updatedAt } pageInfo { hasNextPage } }
  usage { resource used limit remaining } } }"""

# Commands: → in sequence, ∥ concurrent, ⋈ joined or ∪ united by the server within one command.
SHAPES = {
    "register": "throttle of the address → throttle of the mailbox → registration → mail job → commit",
    "confirm": "registration → delete it → user → audit → commit → lastLogin → audit → session → commit",
    "signIn": "user⋈throttles → lastLogin → credential (→ its browser, once) → audit → session → commit",
    "me": "session⋈user",
    "me { subscription { plan } projects usage }": "subscription ∥ projects ∥ user∪limits∪gauge∪calls",
    "usage": "user∪limits∪gauge∪calls",
    "projects": "projects",
    "projects(search)": "projects",
    "project": "project",
    "createProject, the first": "session⋈user → user⋈limits⋈gauge → gauge → project → audit → commit",
    "createProject": "user⋈limits⋈gauge → gauge → project → audit → commit",
    "createProject, refused": "user⋈limits⋈gauge → gauge → why → abort",
    "updateProject, text": "texts and sizes → project → commit",
    "updateProject, canvas": "user⋈limits → texts and sizes → gauge → project → commit",
    "deleteProject": "project → its sizes → gauge → audit → commit",
    "restoreProject": "user⋈limits → project → gauge → project → audit → commit",
    "signOut": "delete session",
}
LIMITS = {
    "me { subscription { plan } projects usage }": 3,
    "projects(search)": 1,
    "createProject, the first": 6,
    "createProject": 6,
}
CREATE = "mutation ($name: String!) { createProject(input: {name: $name, canvasData: {shapes: []}}) { id } }"
UPDATE = "mutation ($id: ID!, $input: UpdateProjectInput!) { updateProject(id: $id, input: $input) { id } }"
CANVAS = {"shapes": [{"id": n, "x": n * 3, "y": n * 7, "kind": "rectangle"} for n in range(100)]}


class _Ledger:
    """Seconds and commands of each journey, over all rounds."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {}
        self.trips: dict[str, list[list[RoundTrip]]] = {}

    async def measure(self, journey: str, work: Callable[[], Awaitable[Any]]) -> Any:
        with round_trips() as trips:
            began = time.perf_counter()
            answer = await work()
            self.seconds.setdefault(journey, []).append(time.perf_counter() - began)
        self.trips.setdefault(journey, []).append(trips)
        return answer


async def run(setup: Setup) -> list[Table]:
    ledger = _Ledger()
    async with town(setup) as place:
        await _live(place, _Ledger())  # warms up
        for _ in range(setup.rounds(30)):
            await _live(place, ledger)
    return [_table(ledger)]


async def _live(place: Town, ledger: _Ledger) -> None:
    """One person's life with Ximler, from registering to signing out."""
    client, email = Client(place.app), f"{uuid4().hex}@example.com"
    await place.database.raw["throttles"].delete_many({})  # so many people at one address would have to wait

    async def ask(journey: str, query: str, *, code: str | None = None, **variables: Any) -> Any:
        return await ledger.measure(journey, lambda: client.ask(query, code=code, **variables))

    registration = {"name": "Ada", "email": email, "password": PASSWORD}
    register = "mutation ($input: RegisterInput!) { register(input: $input) { accepted } }"
    await ask("register", register, input=registration)
    await ask("plans", "{ plans { id name price limits { projects } } }")
    await ask("confirm", CONFIRM, token=await place.registered(email), password=PASSWORD)
    client.token = (await ask("signIn", SIGN_IN, email=email, password=PASSWORD))["signIn"]["token"]
    user = await ask("me", "{ me { id name email } }")
    await place.database.subscriptions.insert(
        # Ended: shown with its plan, while the free plan's limits apply.
        Subscription(
            user_id=ObjectId(user["me"]["id"]),
            plan_id="pro",
            status="EXPIRED",
            start_date=place.database.clock.now(),
            price=29,
        )
    )
    made = await ask("createProject, the first", CREATE, name="First sketch")
    project = made["createProject"]["id"]
    for name in ("Second sketch", "Third sketch"):
        await ask("createProject", CREATE, name=name)
    await ask("createProject, refused", CREATE, code="QUOTA_EXCEEDED", name="Fourth sketch")
    await ask("me { subscription { plan } projects usage }", ME)
    await ask("usage", "{ usage { resource used limit remaining } }")
    await ask("projects", "{ projects { nodes { id name updatedAt } } }")
    await ask("projects(search)", '{ projects(search: "sec sk") { nodes { id name updatedAt } } }')
    await ask("project", "query ($id: ID!) { project(id: $id) { id name } }", id=project)
    await ask("updateProject, text", UPDATE, id=project, input={"name": "Finished sketch"})
    await ask("updateProject, canvas", UPDATE, id=project, input={"canvasData": CANVAS})
    await ask("deleteProject", "mutation ($id: ID!) { deleteProject(id: $id) { id } }", id=project)
    await ask("restoreProject", "mutation ($id: ID!) { restoreProject(id: $id) { id } }", id=project)
    await ask("signOut", "mutation { signOut }")


def _table(ledger: _Ledger) -> Table:
    # The maximum counts; the shape is shown for the usual number.
    most = {journey: max(map(len, trips)) for journey, trips in ledger.trips.items()}
    rows = [
        (journey, str(most[journey]), ms(median(seconds)), _shape(journey, ledger.trips[journey]))
        for journey, seconds in ledger.seconds.items()
    ]
    return Table(
        title="journeys: database round trips and time",
        figures=[
            Figure(what=f"{journey}: commands", value=most[journey], unit="", most=limit)
            for journey, limit in LIMITS.items()
        ],
        columns=("operation", "commands", "median", "→ one after the other, ∥ side by side, ⋈ joined by the server"),
        rows=rows,
        notes=[
            f"{len(ledger.seconds['me'])} people, one after the other, by GraphQL over ASGI in this process, on a mongod beside it. "
            "Commands as the driver sends them, including the session's look-up; the maximum over all runs.",
            "limits: the active subscription and its plan, or the free one. Nothing but who is signed in is kept between requests: "
            "the first one after the sign-in asks (session⋈user).",
            "A session that is not cached costs one more command.",
            "register and signIn hash a password (Argon2id, 19 MiB, 2 passes), which takes most of their time.",
        ],
        samples=ledger.seconds,
    )


def _shape(journey: str, trips: list[list[RoundTrip]]) -> str:
    """The entry in SHAPES, if it has the usual number of commands; else the commands themselves."""
    usual = Counter(tuple(sent) for sent in trips).most_common(1)[0][0]
    if not usual:
        return "from memory"
    told = SHAPES.get(journey, "")
    if len(re.split("[→∥]", told)) == len(usual):
        return told
    return ", ".join(f"{verb} {collection}".strip() for verb, collection in usual)
