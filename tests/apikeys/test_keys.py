"""API keys as their owner has them: made once, listed, changed, rotated, revoked;
and told of in the audit log."""

import asyncio
import itertools
from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from bson import ObjectId
from tests.contents import contents

from ximler.accounts.step_up import StepUpRequired
from ximler.apikeys import keys, tokens
from ximler.core.actor import Actor
from ximler.core.clock import LAST
from ximler.core.errors import Forbidden, Invalid, LimitExceeded, NotFound, Unauthenticated

READ = ["projects:read"]


async def make(database, actor, **more):
    return await keys.create(database, actor, **{"name": "ci", "permissions": READ, **more})


async def actions(database):
    return [
        entry["action"] for entry in await database.raw.auditlogs.find({"resource": "apikeys"}).sort("_id").to_list()
    ]


async def test_a_key_is_shown_once_and_kept_nowhere(database, actor):
    made = await make(database, actor)
    assert tokens.is_well_formed(made.secret)
    everything = b"".join(itertools.chain(*(await contents(database)).values()))
    assert made.secret.encode() not in everything
    assert made.secret[4:-6].encode() not in everything
    stored = await database.raw.apikeys.find_one({})
    assert stored["keyHash"] == tokens.hash_of(made.secret)
    assert stored["hint"] == made.secret[-4:]
    assert await actions(database) == ["apikeys.key.created"]


async def test_keys_are_listed_newest_first_with_their_state(database, actor):
    now = database.clock.now()
    first = await make(database, actor, name="first", expires_at=now + timedelta(hours=1))
    second = await make(database, actor, name="second")
    third = await make(database, actor, name="third")
    await keys.revoke(database, actor, second.key.id)
    await keys.rotate(database, actor, third.key.id)
    database.clock.offset_ms += 3_600_001
    listed = await keys.mine(database, actor)
    states = {key.id: keys.state(key, database.clock.now()) for key in listed}
    assert [key.name for key in listed] == ["third", "third", "second", "first"]
    assert states[first.key.id] == "EXPIRED"
    assert states[second.key.id] == "REVOKED"
    assert states[third.key.id] == "ROTATED"
    assert states[listed[0].id] == "ACTIVE"


async def test_creating_or_extending_a_key_requires_a_recent_sign_in(database, actor):
    made = await make(database, actor, permissions=["projects:read", "projects:write"])
    stale = msgspec.structs.replace(actor, authenticated_at=database.clock.now() - timedelta(minutes=11))
    with pytest.raises(StepUpRequired):
        await make(database, stale)
    with pytest.raises(StepUpRequired):
        await keys.rotate(database, stale, made.key.id)
    with pytest.raises(StepUpRequired):
        await keys.change(database, stale, made.key.id, permissions=["projects:read", "usage:write"])
    with pytest.raises(StepUpRequired):
        await keys.change(database, stale, made.key.id, allowed_addresses=[])
    changed = await keys.change(database, stale, made.key.id, name="cd", permissions=READ)
    assert (changed.name, changed.permissions) == ("cd", READ)
    assert (await keys.revoke(database, stale, made.key.id)).revoked_at


async def test_a_key_makes_no_key(database, actor, ada):
    by_key = Actor(
        kind="user", via="api_key", user_id=ada.id, api_key_id=ObjectId(), scopes=frozenset(["projects:read"])
    )
    with pytest.raises(StepUpRequired):
        await make(database, by_key)
    with pytest.raises(Unauthenticated):
        await make(database, Actor())


async def test_a_key_of_another_user_is_not_found(database, actor):
    made = await make(database, actor)
    somebody = msgspec.structs.replace(actor, user_id=ObjectId())
    for attempt in (
        keys.change(database, somebody, made.key.id, name="mine"),
        keys.rotate(database, somebody, made.key.id),
        keys.revoke(database, somebody, made.key.id),
    ):
        with pytest.raises(NotFound):
            await attempt
    assert await keys.mine(database, somebody) == []
    with pytest.raises(Forbidden):
        await make(database, somebody, user_id=actor.user_id)
    with pytest.raises(Forbidden):
        await keys.mine(database, somebody, user_id=actor.user_id)
    assert await actions(database) == ["apikeys.key.created"]


async def test_operators_see_new_secrets_only_on_the_command_line(database, actor):
    made = await make(database, actor)
    operator = msgspec.structs.replace(actor, kind="operator", user_id=ObjectId())
    with pytest.raises(Forbidden):
        await make(database, operator, user_id=actor.user_id)
    with pytest.raises(Forbidden):
        await keys.rotate(database, operator, made.key.id)
    assert len(await keys.mine(database, operator, user_id=actor.user_id)) == 1
    assert (await keys.revoke(database, operator, made.key.id)).revoked_at
    shell = Actor(kind="operator", via="cli")
    fresh = await make(database, shell, user_id=actor.user_id)
    assert (await keys.rotate(database, shell, fresh.key.id)).key.user_id == actor.user_id


async def test_a_rotated_key_works_until_its_grace_or_expiry_ends(database, actor):
    now = database.clock.now()
    lasting = await make(database, actor, allowed_addresses=["10.0.0.0/8"])
    fresh = await keys.rotate(database, actor, lasting.key.id, grace=timedelta(hours=1))
    old = await database.api_keys.get(lasting.key.id)
    assert now + timedelta(minutes=59) < old.expires_at < now + timedelta(minutes=61)
    assert old.replaced_by == fresh.key.id
    assert (fresh.key.permissions, fresh.key.allowed_addresses) == (READ, ["10.0.0.0/8"])
    assert fresh.key.expires_at is None
    assert fresh.secret != lasting.secret

    ending = await make(database, actor, expires_at=now + timedelta(minutes=30))
    fresh = await keys.rotate(database, actor, ending.key.id)
    assert (await database.api_keys.get(ending.key.id)).expires_at == ending.key.expires_at
    assert fresh.key.expires_at > now + timedelta(minutes=29)
    last = await make(database, actor, expires_at=LAST)
    await database.raw.apikeys.update_one({"_id": last.key.id}, {"$set": {"createdAt": datetime(1, 1, 1, tzinfo=UTC)}})
    assert (await keys.rotate(database, actor, last.key.id)).key.expires_at == LAST
    with pytest.raises(keys.KeyNotActive, match="rotated"):
        await keys.rotate(database, actor, ending.key.id)
    await keys.revoke(database, actor, fresh.key.id)
    with pytest.raises(keys.KeyNotActive, match="revoked"):
        await keys.rotate(database, actor, fresh.key.id)


async def test_of_racing_rotations_one_succeeds(database, actor):
    made = await make(database, actor)
    results = await asyncio.gather(
        *(keys.rotate(database, actor, made.key.id) for _ in range(5)), return_exceptions=True
    )
    assert [isinstance(result, keys.Made) for result in results].count(True) == 1
    assert await database.api_keys.count({}) == 2


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": ""},
        {"name": "  "},
        {"name": "x" * 101},
        {"name": "a\nb"},
        {"permissions": []},
        {"permissions": ["projects:read", "everything"]},
        {"permissions": ["read"]},
        {"allowed_addresses": ["10.0.0.1/8"]},
        {"allowed_addresses": ["somewhere"]},
        {"allowed_addresses": ["10.0.0.1"] * 51},
    ],
)
async def test_invalid_input_is_rejected_by_name(database, actor, wrong):
    with pytest.raises(Invalid) as refused:
        await make(database, actor, **wrong)
    assert refused.value.fields
    assert await database.api_keys.count({}) == 0


async def test_a_key_that_would_be_born_expired_is_refused(database, actor):
    with pytest.raises(Invalid):
        await make(database, actor, expires_at=database.clock.now())


async def test_the_number_of_keys_per_user_is_limited(database, actor, monkeypatch):
    monkeypatch.setattr(keys, "MAX_KEYS", 3)
    made = [await make(database, actor) for _ in range(3)]
    with pytest.raises(LimitExceeded):
        await make(database, actor)
    await keys.revoke(database, actor, made[0].key.id)
    await make(database, actor)


async def test_concurrent_creations_do_not_exceed_the_limit_of_keys(database, actor, monkeypatch):
    monkeypatch.setattr(keys, "MAX_KEYS", 3)
    ends = await asyncio.gather(*(make(database, actor) for _ in range(10)), return_exceptions=True)
    assert sum(isinstance(end, LimitExceeded) for end in ends) == 7
    assert len(await keys.mine(database, actor)) == 3


async def test_repeated_rotations_do_not_exceed_the_limit_of_keys(database, actor, monkeypatch):
    monkeypatch.setattr(keys, "MAX_KEYS", 3)
    newest = (await make(database, actor)).key
    await make(database, actor)
    await make(database, actor)
    for _ in range(3):
        newest = (await keys.rotate(database, actor, newest.id, grace=timedelta(days=30))).key
    with pytest.raises(LimitExceeded):
        await keys.rotate(database, actor, newest.id, grace=timedelta(days=30))
    assert len(await keys.mine(database, actor)) == 6


async def test_the_log_has_the_changes_and_no_secret(database, actor):
    made = await make(database, actor)
    await keys.change(database, actor, made.key.id, name="cd")
    await keys.change(database, actor, made.key.id, name="cd")  # changes nothing
    fresh = await keys.rotate(database, actor, made.key.id)
    await keys.revoke(database, actor, made.key.id)
    await keys.revoke(database, actor, made.key.id)
    assert await actions(database) == [
        "apikeys.key.created", "apikeys.key.changed", "apikeys.key.rotated", "apikeys.key.revoked",
    ]  # fmt: skip
    log = str(await database.raw.auditlogs.find({}).to_list())
    for secret in (made.secret, fresh.secret, tokens.hash_of(made.secret), tokens.hash_of(fresh.secret)):
        assert secret not in log


async def test_a_new_secret_sends_its_owner_a_notice(database, actor):
    made = await keys.create(database, actor, name="ci", permissions=["projects:read"])
    again = await keys.rotate(database, actor, made.key.id)
    jobs = await database.raw["outbox"].find({"kind": "accounts.send_notice"}).sort("_id", 1).to_list()
    assert [job["payload"]["details"] for job in jobs] == [{"hint": made.key.hint}, {"hint": again.key.hint}]
    assert made.secret not in str(jobs)


async def test_only_operators_grant_the_scope_that_stores_without_end(database, actor):
    """Customers once gave themselves `usage:write`, and stored 200,000 events in five seconds."""
    with pytest.raises(Forbidden, match="granted by operators"):
        await make(database, actor, permissions=["usage:write"])
    made = await make(database, actor, permissions=["projects:read"])
    with pytest.raises(Forbidden, match="granted by operators"):
        await keys.change(database, actor, made.key.id, permissions=["projects:read", "usage:write"])
    operator = Actor(kind="operator", via="cli")
    granted = await keys.create(
        database, operator, name="gateway", permissions=["usage:write", "projects:read"], user_id=actor.user_id
    )
    kept = await keys.change(database, actor, granted.key.id, name="meter", permissions=["usage:write"])
    assert kept.permissions == ["usage:write"]
    assert (await keys.rotate(database, actor, granted.key.id)).key.permissions == ["usage:write"]
