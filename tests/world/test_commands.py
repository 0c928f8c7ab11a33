"""Input that people typed in public bug reports of similar systems, given to the command as its own process.

Each row says where its rule comes from.
"""

import json
from datetime import UTC, datetime

import pytest
from tests.cli.conftest import Own, Ximler, _forking, own, ximler  # noqa: F401 (fixtures)

STORED = [
    # (the address as another application stored it, the address as an operator types it)
    # Mongoose keeps capitals where the model has no `lowercase`.
    ("Ada@Example.com", "Ada@Example.com"),
    # RFC 5890: an A-label and its U-label are one domain.
    ("ada@xn--mnchen-3ya.de", "ada@münchen.de"),
    # It cannot be normalised: it has no domain.
    ("root@localhost", "root@localhost"),
    # RFC 6532, 3.1: an address is composed, and macOS types it decomposed.
    ("jörg@example.com", "JO\u0308RG@example.com"),
]


@pytest.mark.slow
def test_an_account_is_found_by_the_address_that_another_application_stored(ximler: Ximler, own: Own) -> None:  # noqa: F811
    env, database = own
    made = ximler("users", "create", "--name", "Ada", "--email", "ada@example.com", "--password-stdin", "--json", env=env,
                  stdin="correct horse battery staple\n")  # fmt: skip
    assert made.returncode == 0
    for stored, typed in STORED:
        database.users.update_one({"email": {"$exists": True}}, {"$set": {"email": stored}})
        shown = ximler("usage", "show", typed, "--json", env=env)
        assert (shown.returncode, json.loads(shown.stdout)["email"]) == (0, stored), (typed, shown.stderr)


EVENTS = [
    # (an event's fields as typed, whether it is counted)
    # RFC 8259, 6: JSON has one kind of number, and JavaScript and Lua print 1 as 1.0.
    ('"amount": 1.0', True),
    ('"amount": 10e-1', True),
    ('"amount": 1e0', True),
    ('"amount": 1.5', False),
    ('"amount": "1"', False),
    ('"amount": true', False),
    ('"amount": 1e400', False),
    # A key twice, bytes that are not UTF-8, and a byte order mark in the middle of joined files.
    ('"amount": 1, "amount": 1', False),
    ('"source": "caf\\ud800"', False),
    ('"source": "ok"', True),
]


@pytest.mark.slow
def test_events_are_imported_and_keys_are_rotated_at_the_end_of_time(ximler: Ximler, own: Own) -> None:  # noqa: F811
    env, database = own
    made = ximler("users", "create", "--name", "Ada", "--email", "ada@example.com", "--password-stdin", "--json", env=env,
                  stdin="correct horse battery staple\n")  # fmt: skip
    user = json.loads(made.stdout)["id"]
    at = datetime.now(UTC).isoformat(timespec="seconds")
    lines = [f'{{"id": "{n}", "at": "{at}", "userId": "{user}", {fields}}}' for n, (fields, _) in enumerate(EVENTS)]
    told = ximler("usage", "import", "-", "--json", env=env, stdin="\ufeff" + "\n\ufeff".join(lines))
    report = json.loads(told.stdout)
    refused = [number for number, (_, counted) in enumerate(EVENTS, 1) if not counted]
    assert (told.returncode, report["accepted"]) == (1, len(EVENTS) - len(refused))
    assert [each["line"] for each in report["refused"]] == refused

    # The last instant of RFC 3339 and Python: a grace period would end after it.
    key = json.loads(ximler("keys", "create", "ada@example.com", "--name", "k", "--scope", "account:read", "--json",
                            env=env).stdout)["id"]  # fmt: skip
    database.apikeys.update_one({}, {"$set": {"expiresAt": datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)}})
    rotated = ximler("keys", "rotate", key, "--grace", "720", "--json", env=env)
    assert rotated.returncode == 0, rotated.stderr
    assert json.loads(rotated.stdout)["expiresAt"].startswith("9999-12-31T23:59:59")
