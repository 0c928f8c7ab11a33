"""`ximler audit`, typed as an operator would, on a database of the test's own."""

import csv
import io
import json
from pathlib import Path

import pytest
from bson import ObjectId
from tests.cli.conftest import Own, Ximler, json_of

from ximler.audit.keys import new_key


@pytest.fixture
def own(own: Own) -> Own:
    """With a key that seals."""
    env, database = own
    return {**env, "XIMLER_AUDIT_KEY": new_key()}, database


def test_a_log_is_sealed_verified_and_tampering_named(ximler: Ximler, own: Own) -> None:
    env, database = own
    person = str(ObjectId())
    assert json_of(ximler("audit", "search", "--user", person, "--json", env=env)) == {"items": [], "next": None}
    ximler("audit", "search", "--user", person, env=env)  # audited reads provide entries for the test
    assert ximler("audit", "seal", env=env).stdout == "2 entries sealed.\n"
    assert ximler("audit", "seal", env=env).stdout == "Everything is sealed.\n"
    sound = ximler("audit", "verify", env=env)
    assert sound.returncode == 0
    assert sound.stdout.startswith("The audit log is intact: 2 entries, 1 seal.\nHead: 1:")
    head = ximler("audit", "head", "--json", env=env).stdout
    first = database.auditlogs.find_one({}, sort=[("_id", 1)])
    database.auditlogs.update_one({"_id": first["_id"]}, {"$set": {"action": "nothing.was.read"}})
    altered = ximler("audit", "verify", "--json", env=env)
    assert altered.returncode == 1
    report = json.loads(altered.stdout)
    assert (report["sound"], report["counts"]) == (False, {"altered": 1})
    assert report["problems"][0]["entry"] == str(first["_id"])
    assert f"altered: entry {first['_id']} (seal 1)" in ximler("audit", "verify", env=env).stdout
    database.auditlogs.delete_many({})
    database.auditseals.delete_many({})
    kept = ximler("audit", "verify", env=env)  # by the head in the data folder
    assert (kept.returncode, "truncated: seal 1" in kept.stdout) == (1, True)
    refused = ximler("audit", "seal", env=env)
    assert refused.returncode != 0
    assert "ximler audit seal --new-chain" in refused.stderr
    cut = ximler("audit", "verify", "--head", head, env=env)
    assert cut.returncode == 1
    assert "truncated: seal 1" in cut.stdout
    assert ximler("audit", "seal", "--new-chain", env=env).stdout == "1 entry sealed.\n"
    assert ximler("audit", "verify", env=env).returncode == 0


def test_an_auditor_checks_with_public_keys_alone(ximler: Ximler, own: Own) -> None:
    env, _ = own
    ximler("audit", "seal", env=env)
    public = ximler("audit", "key", env=env).stdout.strip()
    assert public.startswith("pub:")
    others = {**env, "XIMLER_AUDIT_KEY": new_key()}
    assert ximler("audit", "verify", env=others).returncode == 1
    assert ximler("audit", "verify", "--key", public, env=others).returncode == 0
    renewed = ximler("audit", "key", "--new", env=env).stdout.strip()
    assert public in renewed.split(",")
    both = {**env, "XIMLER_AUDIT_KEY": renewed}
    assert ximler("audit", "verify", env=both).returncode == 0
    refused = ximler("audit", "seal", env={**env, "XIMLER_AUDIT_KEY": public})
    assert refused.returncode == 2


def test_without_a_key_the_error_explains_how_to_generate_one(ximler: Ximler, own: Own) -> None:
    env, _ = own
    without = {name: value for name, value in env.items() if name != "XIMLER_AUDIT_KEY"}
    for command in (("seal",), ("verify",), ("head",), ("key",)):
        result = ximler("audit", *command, env=without)
        assert result.returncode == 2, command
        assert "ximler audit key --new" in result.stderr
    made = ximler("audit", "key", "--new", env=without)
    assert ximler("audit", "seal", env={**env, "XIMLER_AUDIT_KEY": made.stdout.strip()}).returncode == 0
    bad = ximler("audit", "seal", env={**env, "XIMLER_AUDIT_KEY": "no-key"})
    assert bad.returncode == 2
    assert "XIMLER_AUDIT_KEY" in bad.stderr


def test_entries_are_found_exported_erased_and_pruned(ximler: Ximler, own: Own, tmp_path: Path) -> None:
    env, database = own
    person = str(ObjectId())
    for _ in range(3):
        ximler("audit", "search", "--user", person, env=env)
    page = json_of(ximler("audit", "search", "--action", "audit.log.read", "--limit", "2", "--json", env=env))
    assert len(page["items"]) == 2
    assert "_audit" not in page["items"][0]["details"]
    rest = json_of(ximler("audit", "search", "--action", "audit.log.read", "--after", page["next"], "--json", env=env))
    assert len(rest["items"]) == 1
    assert json_of(ximler("audit", "search", "--until", "1h", "--json", env=env))["items"] == []
    lines = ximler("audit", "export", env=env).stdout.splitlines()
    assert [json.loads(line)["action"] for line in lines] == ["audit.log.read"] * 4
    ximler("audit", "export", "--format", "csv", "--output", str(tmp_path / "log.csv"), "--user", person, env=env)
    assert len(list(csv.DictReader(io.StringIO((tmp_path / "log.csv").read_text())))) == 4
    assert (tmp_path / "log.csv").stat().st_mode & 0o777 == 0o600
    again = ximler("audit", "export", "--output", str(tmp_path / "log.csv"), env=env)
    assert (again.returncode, "--force" in again.stderr) == (2, True)
    assert json_of(ximler("audit", "erase", person, "--yes", "--json", env=env)) == {"erased": 0}
    assert ximler("audit", "seal", env=env).returncode == 0
    ximler("audit", "search", env=env)
    assert ximler("audit", "prune", "--older-than", "0s", env=env, stdin="n\n").returncode == 130
    assert json_of(ximler("audit", "prune", "--older-than", "0s", "--yes", "--json", env=env)) == {"removed": 0}
    database.auditlogs.insert_one({"_id": ObjectId(), "action": "a", "resource": "b"})
    ximler("audit", "seal", env=env)
    assert json_of(ximler("audit", "prune", "--older-than", "0s", "--yes", "--json", env=env))["removed"] >= 6


def test_malformed_times_ids_and_heads_are_rejected(ximler: Ximler, own: Own) -> None:
    env, _ = own
    for arguments in (
        ("search", "--since", "yesterday"),
        ("search", "--user", "ada"),
        ("search", "--resource-id", "1"),
        ("verify", "--head", "1:xyz"),
        ("verify", "--key", "pub:xyz"),
        ("prune", "--older-than", "2999-01-01", "--yes"),
    ):
        result = ximler("audit", *arguments, env=env)
        assert result.returncode == 2, arguments
        assert "Traceback" not in result.stderr
    for command in (["search", "--user"], ["erase", "--yes"]):
        unknown = ximler("audit", *command, "nobody@example.com", env=env)
        assert (unknown.returncode, unknown.stderr) == (5, "error: There is no user nobody@example.com\n")


def test_roles_are_printed_as_commands_and_as_json(ximler: Ximler, own: Own) -> None:
    env, database = own
    printed = ximler("db", "roles", env=env).stdout
    assert printed.startswith(f"use {database.name}\ndb.createRole({{")
    roles = json_of(ximler("db", "roles", "--json", env=env))
    on_log = [p["actions"] for p in roles["ximlerApplication"] if p["resource"]["collection"] == "auditlogs"]
    assert "insert" in on_log[0]
    assert not {"update", "remove", "createIndex", "collMod", "dropCollection"} & set(on_log[0])
    refused = ximler("db", "roles", "--apply", env=env)
    assert refused.returncode == 4
    assert "userAdmin" in refused.stderr
