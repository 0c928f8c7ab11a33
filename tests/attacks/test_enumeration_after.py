"""The load of the server after an answer does not reveal whether an address has an account.

The attacker sends requests for addresses, half of which have an account, and measures the times of other
requests after each. The area under the ROC curve (AUC) is the probability that a measure is greater for
an address with an account than for one without; 0.5 means no information. Its standard error here is 0.02.
"""

import asyncio
import os
import secrets
import time
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from tests.cli.conftest import Own, Up, own  # noqa: F401 (a fixture)

ROUNDS = int(os.environ.get("ROUNDS") or 500)  # of each kind
SOON_S, LATER_S = 0.05, 0.4  # the second is longer than the delay of jobs
HASH = "$argon2id$v=19$m=7168,t=1,p=1$c29tZXNhbHRzb21lc2FsdA$6p0tZcJ3n7cXkqv3nq0gqC0mW0xk2m6m5k4m3o1pW0E"
REQUESTS = {
    "reset": "mutation ($email: String!) { requestPasswordReset(email: $email) { accepted } }",
    "register": 'mutation ($email: String!) { register(input: {name: "M", email: $email, '
    'password: "correct horse battery"}) { accepted } }',
}


@pytest.fixture
async def smtp() -> AsyncIterator[str]:
    """A server that takes all mail."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 x\r\n")
        data = False
        while line := await reader.readline():
            if data:
                data = line != b".\r\n"
                said = b"" if data else b"250 x\r\n"
            else:
                verb = line[:4].upper()
                data = verb == b"DATA"
                said = b"354 x\r\n" if data else b"221 x\r\n" if verb == b"QUIT" else b"250 x\r\n"
            writer.write(said)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    yield f"smtp://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    server.close()


def auc(known: list[float], unknown: list[float]) -> float:
    """The AUC by ranks (Mann and Whitney), with ties at half."""
    ranked = sorted([(each, 1) for each in known] + [(each, 0) for each in unknown])
    total, at = 0.0, 0
    while at < len(ranked):
        end = at
        while end < len(ranked) and ranked[end][0] == ranked[at][0]:
            end += 1
        total += (at + end + 1) / 2 * sum(which for _, which in ranked[at:end])
        at = end
    return (total - len(known) * (len(known) + 1) / 2) / (len(known) * len(unknown))


async def pings(http: httpx.AsyncClient, seconds: float) -> list[tuple[float, float]]:
    """When each request began, and how long it took."""
    began = time.perf_counter()
    took = []
    while (now := time.perf_counter()) - began < seconds:
        await http.get("/healthz")
        took.append((now - began, time.perf_counter() - now))
    return took


@pytest.mark.soak
@pytest.mark.parametrize("kind", REQUESTS)
async def test_other_requests_do_not_tell_whether_an_address_has_an_account(
    tmp_path: Path,
    own: Own,  # noqa: F811
    smtp: str,
    kind: str,
) -> None:
    environment, database = own
    now = time.time()
    known = [f"k{n}@example.com" for n in range(ROUNDS + 5)]
    database["users"].insert_many(
        [{"name": "K", "email": each, "password": HASH, "emailVerified": True, "__v": 0} for each in known]
    )
    server = Up(
        tmp_path / "data",
        env=environment
        | {"XIMLER_ENVIRONMENT": "development", "XIMLER_TRUSTED_PROXIES": "127.0.0.1", "XIMLER_SMTP_URL": smtp},
    )
    measures: dict[tuple[str, bool], list[float]] = {}
    try:
        async with httpx.AsyncClient(base_url=server.url, timeout=30) as http:

            async def ask(email: str, n: int) -> None:
                body = {"query": REQUESTS[kind], "variables": {"email": email}}
                headers = {"X-Forwarded-For": f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}"}
                answer = await http.post("/graphql", json=body, headers=headers)
                assert "errors" not in answer.json(), answer.text

            for n in range(5):  # caches
                await ask(known[ROUNDS + n], n)
            await pings(http, 1)
            for n in range(ROUNDS):
                pair = [(known[n], True), (f"u{n}@example.com", False)]
                for email, has in pair if secrets.randbelow(2) else pair[::-1]:
                    await ask(email, 10 + 2 * n + has)
                    took = await pings(http, LATER_S)
                    soon = [each for at, each in took if at < SOON_S]
                    for when, which in (("soon", soon), ("later", [each for _, each in took])):
                        measures.setdefault((f"mean, {when}", has), []).append(sum(which) / len(which))
                        measures.setdefault((f"slowest, {when}", has), []).append(max(which))
    finally:
        server.close()
    areas = {name: round(auc(measures[name, True], measures[name, False]), 3) for name, has in measures if has}
    print(f"{kind}: {areas}, {time.time() - now:.0f} s")
    assert max(areas["mean, soon"], areas["slowest, soon"]) < 0.55
