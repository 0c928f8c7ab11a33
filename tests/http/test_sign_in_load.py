"""Many concurrent sign-ins do not delay other requests."""

import asyncio
import time
from statistics import median

import msgspec
import pytest
from tests.serving import PASSWORD, Client, serve

from ximler.accounts.keyring import Keyring
from ximler.core.settings import Settings
from ximler.database import Database
from ximler.schema.user import User

pytestmark = pytest.mark.slow

AT_ONCE = 12


async def test_health_checks_do_not_wait_for_hashes(database: Database, settings: Settings, mongodb_uri: str) -> None:
    slow = msgspec.structs.replace(
        settings, argon2_memory_kib=65536, argon2_time_cost=4, database=database.name, graphql_timeout_s=60
    )
    keyring = Keyring(slow)
    began = time.perf_counter()
    hashed = await keyring.hash_password(PASSWORD)
    one_hash = time.perf_counter() - began
    keyring.close()
    await database.users.insert_many(User(name="N", email=f"p{n}@example.com", password=hashed) for n in range(AT_ONCE))
    async with serve(slow, mongodb_uri) as app:
        people = [Client(app) for _ in range(AT_ONCE)]
        signing = asyncio.gather(*(client.sign_in(f"p{n}@example.com") for n, client in enumerate(people)))
        taken = []
        while not signing.done():
            began = time.perf_counter()
            assert (await people[0].http.get("/healthz")).status_code == 200
            taken.append(time.perf_counter() - began)
            await asyncio.sleep(0.005)
        assert all(not answer.errors for answer in await signing)
    assert len(taken) > AT_ONCE  # it was answered all the while
    assert median(taken) < one_hash / 2
