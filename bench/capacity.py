"""Topic `capacity`: the bytes that a typical user takes, measured, and what from 10⁴ to 10⁸ users need."""

import asyncio
import math
import random
from datetime import UTC, datetime, timedelta
from typing import Any

from bson import ObjectId

from bench.report import Figure, Table
from bench.setup import Setup
from ximler.database import Database
from ximler.projects import search

__all__ = ["run"]

USERS, QUICK = 1_000, 300
START = datetime(2026, 1, 1, tzinfo=UTC)
# One user's documents after a year. The working set is the documents read within an hour, and all indexes.
PROJECTS, CANVAS_BYTES, NOTIFICATIONS, AUDIT, USAGE_ROWS, PAID = 10, 20_000, 30, 60, 700, 0.05
ACTIVE = 0.05
# Of a member of a replica set with 64 GB: WiredTiger's cache is half, of which 80 % is used before it evicts.
MEMBER_GB = 64 * 0.5 * 0.8
# These take what grows with users to a shard each; the others stay whole (docs/scaling.md).
WHOLE = ("users", "apikeys")


async def run(setup: Setup) -> list[Table]:
    users = QUICK if setup.quick else USERS
    async with setup.database(initialised=True) as database:
        await _fill(database, users)
        sizes = await _sizes(database)
    documents, data, disk, indexes = (sum(each[part] for each in sizes.values()) / users for part in range(4))
    hot = indexes + ACTIVE * data
    whole = sum(sizes[name][1] + sizes[name][3] for name in WHOLE) / users
    rows = []
    for power in range(4, 9):
        count = 10**power
        shards = max(1, math.ceil(count * hot / 1e9 / MEMBER_GB))
        rows.append(
            (
                f"10^{power}",
                f"{count * documents / 1e6:,.1f} M",
                _gb(count * data),
                _gb(count * (disk + indexes)),
                _gb(count * hot),
                _gb(count * whole),
                str(shards),
            )
        )
    per_collection = [
        (
            name,
            f"{number / users:,.1f}",
            f"{stored / users:,.0f}",
            f"{on_disk / users:,.0f}",
            f"{of_indexes / users:,.0f}",
        )
        for name, (number, stored, on_disk, of_indexes) in sorted(sizes.items(), key=lambda item: -item[1][1])
    ]
    return [
        Table(
            title=f"capacity: the documents of {users:,} typical users after a year, measured",
            figures=[
                Figure(what="documents a user", value=documents, unit=""),
                Figure(what="data a user, uncompressed", value=data / 1e3, unit="kB"),
                Figure(what="working set a user", value=hot / 1e3, unit="kB"),
                Figure(
                    what="users of a three-member set with 64 GB each", value=MEMBER_GB * 1e6 / (hot / 1e3), unit=""
                ),
            ],
            columns=("collection", "documents", "bytes", "on disk", "indexes"),
            rows=per_collection,
            notes=["Each column is of one user."],
        ),
        Table(
            title="capacity: from 10^4 to 10^8 users",
            columns=("users", "documents", "data", "disk", "working set", "whole on one shard", "shards of 64 GB"),
            rows=rows,
        ),
    ]


async def _sizes(database: Database) -> dict[str, tuple[int, int, int, int]]:
    """By collection: documents, bytes uncompressed and on disk, bytes of indexes."""
    found = {}
    for name in sorted(await database.raw.list_collection_names()):
        if name.startswith("system."):
            continue
        stages = [{"$collStats": {"storageStats": {}}}]
        (row,) = await (await database.raw[name].aggregate(stages)).to_list()
        stats = row["storageStats"]
        if stats["count"]:
            found[name] = (stats["count"], stats["size"], stats["storageSize"], stats["totalIndexSize"])
    return found


async def _fill(database: Database, users: int) -> None:
    chance = random.Random(7)
    for first in range(0, users, 100):
        rows: dict[str, list[dict[str, Any]]] = {}
        for number in range(first, min(first + 100, users)):
            for name, made in _of_user(chance, number).items():
                rows.setdefault(name, []).extend(made)
        for name, made in rows.items():
            await database.raw[name].insert_many(made, ordered=False, bypass_document_validation=True)
    # Sizes on disk are of the last checkpoint, one a minute.
    while (await _sizes(database))["usage"][2] < 100_000:  # noqa: ASYNC110 (the server has no event for it)
        await asyncio.sleep(2)


def _of_user(chance: random.Random, number: int) -> dict[str, list[dict[str, Any]]]:
    user, now = ObjectId(), START + timedelta(seconds=number)
    stamped = {"createdAt": now, "updatedAt": now}
    paying = chance.random() < PAID

    def word() -> str:
        return "".join(chance.choices("abcdefghij", k=8))

    shape = {"id": word(), "type": "rectangle", "x": 1.5, "y": 2.5, "width": 100, "height": 50, "stroke": "#1e1e1e"}
    return {
        "users": [
            {
                "_id": user,
                "name": word(),
                "email": f"{user}@example.com",
                "password": word() * 12,
                "emailVerified": True,
            }
            | {"notificationSettings": {"email": {"productUpdates": True}, "push": {"enabled": False}}, **stamped}
        ],
        "sessions": [
            {"_id": chance.randbytes(32), "userId": user, "userAgent": word() * 12, "expiresAt": now, **stamped}
            for _ in range(2)
        ],
        "apikeys": [
            {"userId": user, "name": word(), "keyHash": chance.randbytes(32).hex(), "permissions": ["a"], **stamped}
        ],
        "gauges": [{"_id": user, "projects": PROJECTS, "storageBytes": 5_000_000, **stamped}],
        "entitlements": [
            {
                "_id": user,
                "planId": "free",
                "planName": "Free",
                "projects": 3,
                "storageBytes": 1,
                "apiCalls": 1,
                **stamped,
            }
        ],
        "quotas": [
            {"_id": f"{user}:apiCalls:2026-{month:02}-01", "userId": user, "resource": "apiCalls", "periodStart": now}
            | {
                "periodEnd": now,
                "limit": 1000,
                "settled": 500,
                "hours": {f"h{hour}": 10 for hour in range(20)},
                **stamped,
            }
            for month in range(1, 13)
        ],
        "usage": [
            {"userId": user, "resourceType": "apiCalls", "amount": 10, "periodStart": now + timedelta(hours=hour)}
            | {"periodEnd": now + timedelta(hours=hour + 1), "metadata": {"ximler": {"metered": 10}}, "createdAt": now}
            for hour in range(USAGE_ROWS)
        ],
        "projects": [
            {
                "userId": user,
                "name": f"{word()} {word()}",
                "description": word() * 5,
                "settings": {},
                "storageSize": 20_000,
            }
            | {
                "canvasData": {"elements": [shape | {"id": word()} for _ in range(CANVAS_BYTES // 130)]},
                "canvasRevision": 9,
            }
            | {"searchTerms": (terms := [word() for _ in range(6)]), "searchKeys": search.keys(terms), **stamped}
            for _ in range(PROJECTS)
        ],
        "notifications": [
            {
                "userId": user,
                "type": "PRODUCT",
                "title": word() * 4,
                "message": word() * 15,
                "readAt": now,
                "createdAt": now,
            }
            for _ in range(NOTIFICATIONS)
        ],
        "auditlogs": [
            {"userId": user, "action": "projects.project.created", "resource": "projects", "resourceId": word() * 3}
            | {
                "hash": chance.randbytes(32),
                "mark": chance.randbytes(32),
                "salt": chance.randbytes(16),
                "createdAt": now,
            }
            for _ in range(AUDIT)
        ],
        **({} if not paying else _of_customer(user, now)),
    }


def _of_customer(user: ObjectId, now: datetime) -> dict[str, list[dict[str, Any]]]:
    stamped = {"createdAt": now, "updatedAt": now}
    lines = [{"kind": "PLAN", "description": "Pro", "amount_minor": 2900, "tax_minor": 0}]
    return {
        "subscriptions": [
            {"userId": user, "planId": "pro", "status": "ACTIVE", "startDate": now, "price": 29, **stamped}
        ],
        "payments": [
            {
                "userId": user,
                "amount": 29,
                "currency": "USD",
                "status": "PAID",
                "paidAt": now,
                "description": "Pro",
                **stamped,
            }
            for _ in range(12)
        ],
        "invoices": [
            {"userId": user, "currency": "USD", "status": "PAID", "lines": lines, "number": f"{user}{month}", **stamped}
            for month in range(12)
        ],
        "movements": [
            {"_id": f"{user}:{n}", "userId": user, "subscriptionId": user, "number": n, "at": now, "planId": "pro"}
            | {"currency": "USD", "annualMinor": 34800, "committedMinor": 34800, "atRiskMinor": 0, "createdAt": now}
            for n in range(3)
        ],
    }


def _gb(size: float) -> str:
    return f"{size / 1e9:,.1f} GB" if size < 1e12 else f"{size / 1e12:,.1f} TB"
