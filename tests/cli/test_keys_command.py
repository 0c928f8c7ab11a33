"""`ximler keys` as an operator types it, and three processes that hear at once of what it takes back."""

import asyncio
import json
import secrets
import time

import httpx
import pytest
from pymongo import MongoClient

WHO = "{ me { email } }"
WITHIN_S = 1.0


@pytest.fixture
def own(mongodb_uri):
    """Environment for a database of the test's own, with Ada's account."""
    name = f"ximler_test_cli_{secrets.token_hex(4)}"
    with MongoClient(mongodb_uri) as client:
        env = {"MONGODB_URI": mongodb_uri, "XIMLER_DATABASE": name, "XIMLER_SECRET_KEY": "k" * 32}
        yield (
            {**env, "XIMLER_ARGON2_MEMORY_KIB": "7168", "XIMLER_LOG_LEVEL": "error", "XIMLER_WORKER": "false"},
            client[name],
        )
        client.drop_database(name)


def make_ada(ximler, env):
    ximler("db", "init", env=env)
    password = "seven violet anchors drift"
    made = ximler(
        "users", "create", "--name", "Ada", "--email", "ada@example.com", "--password-stdin", env=env, stdin=password
    )
    assert made.returncode == 0, made.stderr


def create(ximler, env, *more):
    made = ximler(
        "keys", "create", "ada@example.com", "--name", "ci", "--scope", "account:read", *more, "--json", env=env
    )
    assert made.returncode == 0, made.stderr
    return json.loads(made.stdout)


def test_an_operator_makes_lists_rotates_and_revokes(ximler, own):
    env, database = own
    make_ada(ximler, env)
    assert "no keys" in ximler("keys", "list", "ada@example.com", env=env).stdout
    made = create(ximler, env, "--days", "30", "--from", "10.0.0.0/8")
    assert made["secret"].startswith("xim_")
    assert (made["state"], made["allowedAddresses"]) == ("ACTIVE", ["10.0.0.0/8"])
    rotated = ximler("keys", "rotate", made["id"], "--grace", "1", env=env)
    assert rotated.stdout.startswith("xim_")
    assert rotated.stdout.strip() != made["secret"]
    revoked = ximler("keys", "revoke", made["id"], env=env)
    assert revoked.stdout == f"ci (…{made['hint']}) is revoked.\n"
    listed = ximler("keys", "list", "ada@example.com", env=env).stdout
    assert "REVOKED" in listed
    assert "ACTIVE" in listed
    actions = [entry["action"] for entry in database.auditlogs.find({"resource": "apikeys"}).sort("_id")]
    assert actions == ["apikeys.key.created", "apikeys.key.rotated", "apikeys.key.revoked"]


def test_what_cannot_be_is_said_and_changes_nothing(ximler, own):
    env, database = own
    make_ada(ximler, env)
    for arguments, code, said in (
        (("create", "nobody@example.com", "--name", "x", "--scope", "account:read"), 5, "No such user"),
        (("create", "ada@example.com", "--name", "x", "--scope", "all"), 2, "'all' is none of"),
        (
            ("create", "ada@example.com", "--name", "x", "--scope", "account:read", "--from", "home"),
            2,
            "'home' is no address",
        ),
        (("revoke", "0" * 24), 5, "No such key"),
        (("revoke", "x"), 2, "is not an id"),
    ):
        result = ximler("keys", *arguments, env=env)
        assert result.returncode == code, result.stderr
        assert said in result.stderr
    assert database.apikeys.count_documents({}) == 0


async def status(url, secret):
    async with httpx.AsyncClient(timeout=10) as client:
        answer = await client.post(f"{url}/graphql", json={"query": WHO}, headers={"Authorization": f"Bearer {secret}"})
        return answer.status_code, answer.json()


def statuses(urls, secret):
    async def everywhere():
        return await asyncio.gather(*(status(url, secret) for url in urls))

    return [code for code, _ in asyncio.run(everywhere())]


def test_three_processes_refuse_within_a_second_what_was_taken_back_in_any_way(ximler, own, up):
    env, database = own
    make_ada(ximler, env)
    urls = [up(env=env).url for _ in range(3)]

    def prepared():
        """A key that every process knows by heart."""
        made = create(ximler, env)
        for _ in range(3):
            assert statuses(urls, made["secret"]) == [200] * 3
        return made

    def refused_in(secret, expected):
        began = time.monotonic()
        while (found := statuses(urls, secret)) != [expected] * 3:
            assert time.monotonic() - began < 5, found
        return time.monotonic() - began

    user = database.users.find_one({"email": "ada@example.com"})["_id"]

    key = prepared()
    database.apikeys.update_one({"keyHash": database.apikeys.find_one({"hint": key["hint"]})["keyHash"]},
                                {"$currentDate": {"revokedAt": True}})  # fmt: skip
    assert refused_in(key["secret"], 401) < WITHIN_S  # by another application

    key = prepared()
    database.apikeys.delete_one({"hint": key["hint"]})
    assert refused_in(key["secret"], 401) < WITHIN_S

    key = prepared()
    database.credentials.insert_one({"_id": user, "recoveryCodes": []})
    database.credentials.update_one({"_id": user}, {"$currentDate": {"lockedAt": True}})
    assert refused_in(key["secret"], 403) < WITHIN_S
    database.credentials.update_one({"_id": user}, {"$unset": {"lockedAt": ""}})

    began = time.monotonic()
    while statuses(urls, key["secret"]) != [200] * 3:
        assert time.monotonic() - began < WITHIN_S
    database.apikeys.update_one({"hint": key["hint"]}, {"$set": {"permissions": ["projects:read"]}})
    time.sleep(WITHIN_S)
    for url in urls:
        _, answer = asyncio.run(status(url, key["secret"]))
        assert answer["errors"][0]["extensions"]["code"] == "SCOPE_MISSING"

    database.users.update_one({"_id": user}, {"$currentDate": {"deletedAt": True}})
    assert refused_in(key["secret"], 401) < WITHIN_S
