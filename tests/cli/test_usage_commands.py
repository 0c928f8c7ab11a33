"""`ximler usage`, typed as an operator would, on a database of the test's own."""

import json
from datetime import UTC, datetime

import pytest

from ximler.metering.limits import periods
from ximler.schema.quota import quota_id


def test_an_operator_shows_overrides_corrects_and_forgives(ximler, own):
    env, database = own
    made = ximler("users", "create", "--name", "Ada", "--email", "ada@example.com", "--password-stdin", "--json", env=env,
                  stdin="correct horse battery staple\n")  # fmt: skip
    user = json.loads(made.stdout)["id"]

    shown = ximler("usage", "show", "ada@example.com", env=env)
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "plan Free" in shown.stdout
    assert "1,000" in shown.stdout

    done = ximler("usage", "override", user, "--api-calls", "-1", "--storage-gb", "2.5", "--until", "2999-12-31",
                  "--reason", "a pilot", env=env)  # fmt: skip
    assert done.stdout == "The limits of ada@example.com are overridden.\n"
    shown = json.loads(ximler("usage", "show", user, "--json", env=env).stdout)
    assert {usage["resource"]: usage["limit"] for usage in shown["usage"]} == {
        "projects": 3, "storage": 2_500_000_000, "apiCalls": None,
    }  # fmt: skip
    assert (shown["override"]["reason"], shown["override"]["by"]) == ("a pilot", "cli")
    assert "a pilot" in ximler("usage", "show", user, env=env).stdout
    late = ("--api-calls", "5", "--until", "2020-01-01", "--reason", "x")
    assert ximler("usage", "override", user, *late, env=env).stderr.startswith("error: --until: ")
    done = ximler("usage", "override", user, "--end", "--reason", "over", env=env)
    assert done.stdout == "ada@example.com has the plan's limits again.\n"

    assert ximler("usage", "rebuild", user, env=env).stdout == "There are no differences.\n"
    owner = database.users.find_one({"email": "ada@example.com"})["_id"]
    database.gauges.update_one({"_id": owner}, {"$set": {"projects": 2, "storageBytes": 0}}, upsert=True)
    looked = ximler("usage", "rebuild", "--all", "--dry-run", "--json", env=env)
    assert looked.returncode == 1
    assert json.loads(looked.stdout)["items"] == [{"user": user, "of": "gauge", "what": "projects", "was": 2, "is": 0}]
    assert ximler("usage", "rebuild", "--all", env=env).returncode == 0
    assert ximler("usage", "rebuild", "--all", "--dry-run", env=env).returncode == 0

    refused = ximler("usage", "forgive", user, "--reason", "a power cut", env=env)
    assert (refused.returncode, refused.stdout) == (5, "")
    start, end = periods.around(periods.CALENDAR_MONTH, datetime.now(UTC))
    quota = {
        "userId": owner,
        "resource": "apiCalls",
        "periodStart": start,
        "periodEnd": end,
        "limit": 1000,
        "opened": True,
        "superseded": False,
    }
    counts = {"granted": 9, "settled": 2, "forfeited": 7}
    database.quotas.insert_one({"_id": quota_id(owner, "apiCalls", start), **quota, **counts})
    assert "ximler usage forgive ada@example.com" in ximler("usage", "show", user, env=env).stdout
    assert "apiCalls 2 of 1,000 (7 forfeited)" in ximler("users", "show", user, env=env).stdout
    forgiven = ("usage", "forgive", user, "--reason", "a power cut", "--json")
    assert json.loads(ximler(*forgiven, env=env).stdout) == {"units": 7}
    assert {entry["action"] for entry in database.auditlogs.find({"resource": "entitlements"})} == {
        "metering.override.set",
        "metering.override.ended",
    }


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["show", "nobody@example.com"], 5, "There is no user"),
        (["show", "no-id"], 2, "is not an id"),
        (["override", "a@example.com", "--api-calls", "5"], 2, "--reason"),
        (["override", "a@example.com", "--api-calls", "-2", "--reason", "x"], 2, "-2"),
        (["override", "a@example.com", "--end", "--projects", "1", "--reason", "x"], 2, "--end takes no limits"),
        # Errors name the argument as it was typed.
        (["show", "no-id"], 2, "error: USER: "),
        (["rebuild"], 2, "--all"),
        (["rebuild", "a@example.com", "--all"], 2, "--all"),
    ],
)
def test_invalid_input_is_rejected(ximler, own, arguments, code, said):
    env, _ = own
    result = ximler("usage", *arguments, env=env)
    assert result.returncode == code, result.stderr
    assert said in result.stderr
