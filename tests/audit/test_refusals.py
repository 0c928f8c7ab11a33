"""A flood of refusals leaves a few entries that tell its size."""

import asyncio
from typing import Any

import pytest

from ximler.audit import refusals
from ximler.core.actor import Actor
from ximler.core.networks import subscriber
from ximler.database import Database

HERE = Actor(address="192.0.2.7", user_agent="curl", request_id="r-1")


async def entries(database: Database) -> list[dict[str, Any]]:
    return await database.raw["auditlogs"].find({}).sort("_id").to_list()


@pytest.mark.slow
async def test_a_thousand_refusals_at_once_make_four_entries(database: Database) -> None:
    database.clock.offset_ms = -int(database.clock.now().timestamp() * 1000) % 60_000  # a minute begins
    await asyncio.gather(
        *(refusals.count(database, HERE, "accounts.sign_in.refused", resource="apikeys") for _ in range(1000))
    )
    found = await entries(database)
    assert sorted(entry["metadata"]["count"] for entry in found) == [1, 10, 100, 1000]
    assert {(entry["action"], entry["ipAddress"], entry["resource"]) for entry in found} == {
        ("accounts.sign_in.refused", "192.0.2.7", "apikeys")
    }


async def test_other_addresses_minutes_kinds_and_subjects_are_counted_apart(database: Database) -> None:
    await refusals.count(database, HERE, "accounts.sign_in.refused", resource="users")
    await refusals.count(database, HERE, "accounts.sign_in.refused", resource="users")
    await refusals.count(database, Actor(address="192.0.2.8"), "accounts.sign_in.refused", resource="users")
    await refusals.count(database, HERE, "accounts.code.refused", resource="users")
    await refusals.count(database, HERE, "accounts.sign_in.refused", resource="users", subject="x")
    database.clock.offset_ms = 60_000
    await refusals.count(database, HERE, "accounts.sign_in.refused", resource="users", reason="late")
    found = await entries(database)
    assert len(found) == 5
    assert found[-1]["metadata"]["reason"] == "late"


def test_an_ipv6_customer_is_one_address() -> None:
    assert subscriber("2001:db8:1:2:3:4:5:6") == subscriber("2001:db8:1:2::1") == "2001:db8:1:2::/64"
    assert subscriber("::ffff:192.0.2.7") == subscriber("192.0.2.7") == "192.0.2.7"
    assert subscriber(None) == ""
    assert subscriber("testclient") == "testclient"
    assert subscriber("fe80::1%eth0") == subscriber("fe80::2")
