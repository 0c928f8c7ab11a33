"""A request that comes again with its key is answered as before, and does nothing more."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from bson import ObjectId

from ximler.accounts import idempotency
from ximler.accounts.idempotency import LEASE, MAX_ANSWER, Answer, AnswerNotKept, KeyInUse, KeyReused
from ximler.accounts.keyring import Keyring
from ximler.core.actor import Actor
from ximler.core.errors import Invalid, Unavailable
from ximler.database import Database
from ximler.database.monitoring import round_trips

ADA = Actor(kind="user", via="session", user_id=ObjectId())
Once = Callable[..., Awaitable[tuple[Answer, bool]]]


class Till:
    """Work that counts how often it was done."""

    def __init__(self) -> None:
        self.times = 0
        self.final = True
        self.may_go_on: asyncio.Event | None = None

    async def __call__(self) -> Answer:
        self.times += 1
        if self.may_go_on is not None:
            await self.may_go_on.wait()
        return Answer(200, b'{"sold": %d}' % self.times, [(b"x-till", b"1")], self.final)


@pytest.fixture
def till() -> Till:
    return Till()


@pytest.fixture
def once(database: Database, keyring: Keyring, till: Till) -> Once:
    async def once(
        key: str = "k-1", request: bytes = b"sell", *, by: Actor = ADA, work: Any = till
    ) -> tuple[Answer, bool]:
        return await idempotency.once(database, keyring, by, key=key, request=request, work=work)

    return once


async def test_the_same_request_is_answered_the_same_and_done_once_for_two_commands(till: Till, once: Once) -> None:
    with round_trips() as trips:
        first = await once()
    assert trips == [("insert", "replies"), ("update", "replies")]
    again = await once()
    assert (first[1], again[1]) == (False, True)
    assert first[0] == again[0] == Answer(200, b'{"sold": 1}', [(b"x-till", b"1")])
    assert till.times == 1


async def test_another_request_under_the_same_key_is_refused(till: Till, once: Once) -> None:
    await once()
    with pytest.raises(KeyReused) as refused:
        await once(request=b"refund")
    assert refused.value.code == "IDEMPOTENCY_KEY_REUSED"
    assert till.times == 1


async def test_a_key_belongs_to_its_sender(till: Till, once: Once) -> None:
    others = [
        ADA,
        Actor(kind="user", via="session", user_id=ObjectId()),
        Actor(kind="user", via="api_key", user_id=ADA.user_id, api_key_id=ObjectId()),
        Actor(address="192.0.2.1"),
        Actor(address="192.0.2.2"),
        Actor(),
    ]
    for actor in others:
        assert (await once(by=actor))[1] is False
    assert till.times == len(others)
    assert (await once(by=Actor(address="192.0.2.1", user_agent="another")))[1] is True


async def test_one_of_fifty_concurrent_requests_runs_and_the_others_are_asked_to_wait(till: Till, once: Once) -> None:
    till.may_go_on = asyncio.Event()
    running = [asyncio.ensure_future(once()) for _ in range(50)]
    for ended, refusal in enumerate(asyncio.as_completed(running), start=1):
        with pytest.raises(KeyInUse):
            await refusal
        if ended == 49:
            break
    till.may_go_on.set()
    ends = await asyncio.gather(*running, return_exceptions=True)
    refused = [end for end in ends if isinstance(end, KeyInUse)]
    assert (len(refused), till.times) == (49, 1)
    assert refused[0].retry_after_s == 1
    assert (await once())[1] is True


async def test_a_claim_left_by_a_process_that_died_runs_out(database: Database, till: Till, once: Once) -> None:
    begun, never = asyncio.Event(), asyncio.Event()

    async def die() -> Answer:
        begun.set()
        await never.wait()
        raise AssertionError

    dying = asyncio.ensure_future(once(work=die))
    await begun.wait()
    with pytest.raises(KeyInUse):
        await once()
    database.clock.offset_ms = int(LEASE.total_seconds() * 1000) + 1
    ends = await asyncio.gather(*(once() for _ in range(5)), return_exceptions=True)
    dying.cancel()
    await asyncio.gather(dying, return_exceptions=True)
    answers = [end for end in ends if not isinstance(end, KeyInUse)]  # one worked; a late one may have its answer
    assert [stored for _, stored in answers].count(False) == 1  # type: ignore[misc]  # another error fails here
    assert till.times == 1
    assert (await once())[0].body == b'{"sold": 1}'


async def test_work_that_fails_or_changed_nothing_leaves_the_key_free(
    till: Till, once: Once, database: Database
) -> None:
    async def fail() -> Answer:
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError):
        await once(work=fail)
    till.final = False
    assert (await once())[1] is False
    assert (await once())[1] is False
    assert till.times == 2
    assert await database.raw["replies"].count_documents({}) == 0


@pytest.mark.parametrize("fails", [True, False])
async def test_committed_work_is_not_repeated_when_its_answer_was_lost(
    once: Once, database: Database, fails: bool
) -> None:
    async def work() -> Answer:
        async def write(transaction: Database) -> None:
            await transaction.raw.sold.insert_one({"n": 1}, session=transaction.session)

        await asyncio.gather(asyncio.ensure_future(database.transaction(write)))  # resolvers run in tasks, too
        if fails:
            raise Unavailable("the session could not be started")
        return Answer(503, b"", final=False)

    with pytest.raises(Unavailable) if fails else contextlib.nullcontext():
        await once(work=work)
    with pytest.raises(AnswerNotKept):
        await once(work=work)
    assert await database.raw.sold.count_documents({}) == 1
    await database.raw.sold.drop()


async def test_a_response_too_large_to_store_is_not_replayed_and_work_is_not_repeated(once: Once) -> None:
    times = 0

    async def work() -> Answer:
        nonlocal times
        times += 1
        return Answer(200, b"x" * (MAX_ANSWER + 1))

    assert len((await once(work=work))[0].body) == MAX_ANSWER + 1
    with pytest.raises(AnswerNotKept):
        await once(work=work)
    assert times == 1


async def test_a_key_answers_no_more_than_five_guesses_of_its_request(till: Till, once: Once) -> None:
    """Otherwise a neighbour who knows the key of a sign-in could try passwords against its answer."""
    anybody = Actor(address="192.0.2.9")
    await once(request=b"the password", by=anybody)
    for n in range(4):
        with pytest.raises(KeyReused):
            await once(request=b"guess %d" % n, by=anybody)
    assert (await once(request=b"the password", by=anybody))[1] is True
    for guess in (b"another", b"the password"):
        with pytest.raises(KeyReused):
            await once(request=guess, by=anybody)
    assert till.times == 1


async def test_after_a_day_a_key_is_new(database: Database, till: Till, once: Once) -> None:
    await once()
    database.clock.offset_ms = 24 * 3600 * 1000 - 5000
    assert (await once())[1] is True
    database.clock.offset_ms += 6000
    assert (await once(request=b"something else"))[1] is False
    assert till.times == 2


async def test_neither_key_nor_request_nor_answer_can_be_read_from_the_database(
    once: Once, secrets_in: Any, database: Database
) -> None:
    async def mint() -> Answer:
        return Answer(200, b'{"token": "xim_topsecret"}')

    await once("the-clients-key", b'{"password": "hunter2"}', work=mint)
    assert await secrets_in("xim_topsecret", "the-clients-key", "hunter2", "token") == []


@pytest.mark.parametrize("key", ["", "x" * 256, "a b", "ü", "a\n"])
async def test_a_malformed_key_is_rejected(till: Till, once: Once, key: str) -> None:
    with pytest.raises(Invalid):
        await once(key)
    assert till.times == 0
