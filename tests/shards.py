"""The shards that a cluster with the keys of `ximler db shard-plan` would ask for each command of the suite.

`mongos` decides by the filter's bounds on the shard key. `Watch` looks at every command that the product
sends in pytest's own processes. A command whose filter pins the key to points reaches the shards of those
points; the server is asked for the bounds (`Watch.disproved`), once for each shape of filter. A command that
reaches every shard must be in `EXPECTED`, with its reason. Commands that a cluster refuses have no list.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from pymongo import monitoring
from pymongo.asynchronous.database import AsyncDatabase

import ximler
from ximler.schema import CATALOGUE

Command = dict[str, Any]
Place = tuple[str, str, str]
"""Module of the product, verb and collection."""

VERBS = ("find", "aggregate", "update", "delete", "findAndModify")
KEYS = {each.name: dict(each.shard_key.fields) for each in CATALOGUE}
KEYS |= {"avatars.files": {}, "avatars.chunks": {}}  # pictures of a few kB: kept on one shard
KEYS |= {"assets.files": {"_id": 1}, "assets.chunks": {"files_id": 1}}

# Reason → module of the product → what it sends.
EXPECTED: dict[str, dict[str, str]] = {
    "Reports and searches of operators, over everybody's documents": {
        "accounts.administration": "find sessions, find auditlogs",
        "analytics.buckets": "find reportbuckets",
        "analytics.cash": "aggregate payments, find payments",
        "analytics.retention": "aggregate customerdays",
        "analytics.revenue": "find customerdays, find revenuedays, find revenuemonths",
        "database.reading": "aggregate revenuedays, aggregate revenuemonths",
        "audit.export": "find auditlogs",
        "audit.search": "find auditlogs",
        "billing.invoices": "find invoices, aggregate invoices",
        "billing.movements": "find movements, aggregate movements",
        "billing.operations": "find billingaccounts",
        "billing.statement": "find invoices",
        "metering.reports.business": "aggregate usage, aggregate quotas, aggregate gauges",
        "metering.reports.series": "aggregate usage",
        "projects.everybodys": "find projects",
    },
    "Rollups and checks, nightly or by hand": {
        "analytics.buckets": "update reportbuckets",
        "analytics.rollups": (
            "aggregate customerdays, delete customerdays, aggregate revenuedays, find revenuedays, update revenuedays, "
            "update revenuemonths"
        ),
        "analytics.verification": "find revenuedays, find revenuemonths",
        "audit.sealing": "aggregate auditlogs, find auditlogs",
        "audit.verification": "find auditlogs",
        "billing.drifts": "aggregate subscriptions",
        "billing.movements": "update movements",
        "billing.reconcile": "find billingaccounts, find charges, find checkouts, find refunds, find subscriptions",
        "billing.verify": (
            "find billingaccounts, find charges, find credits, find invoices, find refunds, aggregate subscriptions"
        ),
    },
    "Work that is due, by an index of its time": {
        "accounts.unconfirmed": "aggregate registrations, aggregate replies, aggregate throttles",
        "audit.refusals": "aggregate refusals",
        "billing.checkouts": "update checkouts",
        "billing.events": "find billingevents, aggregate billingevents",
        "billing.run": "find billingaccounts",
        "metering.ledger.changes": "find gauges",
        "metering.quota.reaping": "find quotas",
        "projects.assets_storage": "find assetfiles, delete assetfiles",
        "projects.imports": "find projectimports",
        "projects.trash": "aggregate projects",
    },
    "Documents whose owner is unknown, found by the id that a job, the change stream or the provider has": {
        "analytics.following": "find payments",
        "billing.checkouts": "find checkouts",
        "billing.refunds": "find charges, aggregate refunds",
        "billing.sandbox": "find sandboxobjects",
        "billing.stripe_mirror": "find subscriptions, find payments",
        "metering.limits.follower": "find subscriptions",
        "projects.bases": "find projects",
        "projects.canvas": "update projects",
        "projects.compaction": "find projects",
    },
    "Initialisation and migrations, over all documents": {
        "metering.quota.gauges": "aggregate gauges",
        "migrations.m0002_search_terms": "aggregate projects, update projects",
        "setup": "find auditlogs",
    },
    "A plan's new limits, copied to everybody with the plan": {
        "metering.limits.entitlements": "find entitlements, update entitlements, update quotas",
    },
    "A user's sessions, quotas, shares, refunds and audit log, seldom; frequent commands pin their keys": {
        "accounts.attempts": "find sessions",
        "accounts.export": "find sessions",
        "accounts.second_factor": "find credentials",
        "accounts.session_authentication": "delete sessions, update sessions",
        "accounts.sessions": "find sessions, delete sessions",
        "audit.erasure": "find auditlogs",
        "billing.payments": "find charges",
        "billing.refunds": "find refunds",
        "metering.corrections": "find quotas",
        "metering.quota.leases": "aggregate quotas, update quotas",
        "billing.erasure": "find checkouts",
        "privacy.erasure": "delete checkouts, delete projectlinks, delete projectshares, delete quotas, delete sessions",
        "privacy.export": "find auditlogs",
        "projects.access": "update projectshares",
        "projects.sharing": "find projectshares, delete projectshares",
    },
}
LISTED: set[Place] = {
    (module, *place.split())  # type: ignore[misc]  # two words
    for modules in EXPECTED.values()
    for module, places in modules.items()
    for place in places.split(", ")
}

_PRODUCT = str(Path(ximler.__file__).parent)
_DATABASE = f"{_PRODUCT}/database/"
_TESTS = str(Path(__file__).parent)


class Watch(monitoring.CommandListener):
    """Registered with every client of the run. The tests' own commands are left out."""

    def __init__(self) -> None:
        self.problems: list[str] = []
        self._found: set[Place] = set()
        self._seen: set[tuple[Any, ...]] = set()
        self._indexed: set[str] = set()
        self._claims: list[tuple[str, dict[str, Any], list[str]]] = []  # collection, filter, the pinned fields

    def started(self, event: monitoring.CommandStartedEvent) -> None:
        name, collection = event.command_name, event.command.get(event.command_name)
        if name not in VERBS or not isinstance(collection, str) or not KEYS.get(collection):
            return
        if "$where" in event.command.get("filter", ()):
            return  # a test's, to be slow
        command: Command = event.command  # type: ignore[assignment]  # a mapping with string keys
        if why := list(refused(command)) or list(broadcasts(command)):
            place = _module(sys._getframe(1)), name, collection
            if place not in self._found:
                if place[0] and (place not in LISTED or any(refused(command))):
                    self.problems.append(f"{' '.join(place)} asks every shard, and is not expected: {why}: {command}")
                self._found.add(place)
            return
        for where, one in filters(command):
            shape = collection, one, *_shape(where)
            if shape not in self._seen:
                self._seen.add(shape)
                fields = list(KEYS[collection])
                self._claims.append((collection, where, fields if one else fields[:1]))

    def succeeded(self, event: monitoring.CommandSucceededEvent) -> None: ...

    def failed(self, event: monitoring.CommandFailedEvent) -> None: ...

    async def disproved(self, database: AsyncDatabase[Any]) -> list[str]:
        """The filters since the last call for which the server has no point
        bounds on an index over the shard key.

        They are explained on empty collections that have this index only.
        """
        claims, self._claims = self._claims, []
        wrong = []
        for collection, where, fields in claims:
            key = KEYS[collection]
            if collection not in self._indexed:
                await database[collection].create_index(list(key.items()))
                self._indexed.add(collection)
            hinted = {name: value for name, value in where.items() if not _needs_its_index(name, value)}
            find: Command = {"find": collection, "filter": hinted, "hint": key}
            explained = await database.command("explain", find, verbosity="queryPlanner")
            bounds = [part["indexBounds"] for part in walk(explained["queryPlanner"]) if "indexBounds" in part]
            if not all(_is_point(bound) for each in bounds for name in fields for bound in each[name]):
                wrong.append(f"{collection} {where} has no point bounds on {fields}: {bounds}")
        return wrong


def refused(command: Command) -> Iterator[str]:
    """Why a cluster refuses the command."""
    collection = command[verb(command)]
    for where, one in filters(command):
        missing = set(KEYS[collection]) - pinned(where) if one else set()
        if missing and (verb(command) == "findAndModify" or "_id" not in pinned(where)):
            yield f"{sorted(missing)} not pinned, for a command on one document"
    for update in command.get("updates", ()):
        if update.get("upsert") and (missing := set(KEYS[collection]) - pinned(update["q"])):
            yield f"{sorted(missing)} not pinned, for an upsert"


def broadcasts(command: Command) -> Iterator[str]:
    """Why a cluster would ask every shard."""
    key = list(KEYS[command[verb(command)]])
    for where, one in filters(command):
        missing = set(key if one else key[:1]) - pinned(where)
        if missing:
            yield f"{sorted(missing)} not pinned"
    for stage in command.get("pipeline", ()):
        for part in walk(stage) if stage.keys() & {"$lookup", "$facet", "$unionWith"} else ():
            if lookup := part.get("$lookup"):
                foreign = list(KEYS[lookup["from"]])
                if foreign and lookup.get("foreignField") != foreign[0]:
                    yield f"$lookup into {lookup['from']} by {lookup.get('foreignField')}"


def filters(command: Command) -> Iterator[tuple[dict[str, Any], bool]]:
    """(filter, whether it must find one document): for that a cluster wants the whole shard key."""
    match verb(command):
        case "find":
            yield command.get("filter", {}), False
        case "aggregate":
            first = command["pipeline"][0] if command["pipeline"] else {}
            yield first.get("$match") or first.get("$geoNear", {}).get("query", {}), False
        case "findAndModify":
            yield command["query"], True
        case "update":
            for update in command["updates"]:
                yield update["q"], not update.get("multi", False)
        case "delete":
            for delete in command["deletes"]:
                yield delete["q"], delete["limit"] == 1


def pinned(where: dict[str, Any]) -> set[str]:
    """Fields that must equal one of a few values."""
    found = set()
    for field, condition in where.items():
        if field == "$and":
            found |= {name for part in condition for name in pinned(part)}
        elif not field.startswith("$"):
            operators = [k for k in condition if k.startswith("$")] if isinstance(condition, dict) else []
            if not operators or "$eq" in operators or "$in" in operators:
                found.add(field)
    return found


def verb(command: Command) -> str:
    return next(iter(command))


def walk(value: Any) -> Iterator[dict[str, Any]]:
    """Every object inside, but not the plans that were rejected."""
    if isinstance(value, dict):
        yield value
        for key, inner in value.items():
            if key not in ("rejectedPlans", "command", "allPlansExecution"):
                yield from walk(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from walk(inner)


def table() -> str:
    """`EXPECTED`, as docs/scaling.md has it."""
    lines = ["| commands that ask every shard | sent by |", "|---|---|"]
    for reason, modules in EXPECTED.items():
        sent = "; ".join(f"`{module}` ({places})" for module, places in modules.items())
        lines.append(f"| {reason} | {sent} |")
    return "\n".join(lines)


def _shape(where: dict[str, Any]) -> Iterator[Any]:
    for field, condition in where.items():
        yield field
        if field.startswith("$") and isinstance(condition, list):
            for part in condition:
                yield from _shape(part)
        elif isinstance(condition, dict):
            yield from condition
        else:
            yield type(condition)


def _needs_its_index(field: str, condition: Any) -> bool:
    return field == "$text" or (isinstance(condition, dict) and any(name.startswith("$near") for name in condition))


def _is_point(bound: str) -> bool:
    """Of `[1, 1]`, but not of `[1, 2]` or `(1, 1]`."""
    inside = bound[1:-1]
    half = len(inside) // 2 - 1
    return bound[0] == "[" and bound[-1] == "]" and inside == f"{inside[:half]}, {inside[:half]}"


def _module(frame: FrameType | None) -> str:
    """The module of the product that sends the command:
    one of `database` only if no other does. Empty if a test does."""
    found = ""
    while frame is not None:
        path = frame.f_code.co_filename
        if path.startswith(_TESTS):
            return ""
        if path.startswith(_PRODUCT):
            found = path[len(_PRODUCT) + 1 : -3].replace("/", ".")
            if not path.startswith(_DATABASE):
                return found
        frame = frame.f_back
    return found
