"""`ximler demo`: an installation beside, whose history is sound, and which leaves nothing behind."""

import json
from datetime import UTC, datetime, timedelta

from pymongo import MongoClient

from ximler.audit.keys import new_key


def test_a_demo_has_a_sound_history_and_is_removed_without_a_trace(ximler, own, mongodb_uri, tmp_path):
    env, mine = own
    env |= {"XIMLER_ENVIRONMENT": "development", "XIMLER_DATA_DIR": str(tmp_path / "data")}
    env["XIMLER_AUDIT_KEY"] = new_key()
    before = {name: mine[name].count_documents({}) for name in mine.list_collection_names()}
    result = ximler("demo", "--json", env=env)
    assert result.returncode == 0, result.stderr
    made = json.loads(result.stdout)
    assert json.loads(ximler("demo", "--json", env=env).stdout) == made  # shown again
    theirs = {**env, "XIMLER_DATABASE": f"{mine.name}_demo", "XIMLER_DATA_DIR": made["folder"]}
    for check in (("billing", "verify"), ("audit", "verify")):
        assert ximler(*check, env=theirs).returncode == 0, check
    with MongoClient(mongodb_uri, tz_aware=True) as client:
        database = client[f"{mine.name}_demo"]
        assert database.subscriptions.find_one()["planId"] == "enterprise"
        assert database.payments.count_documents({"status": "PAID"}) == 4
        assert database.projects.count_documents({"deletedAt": None}) == 3
        days = {row["periodStart"].date() for row in database.usage.find({"resourceType": "apiCalls"})}
        assert len(days) >= 29
        assert database.notifications.count_documents({}) > 3
        first = database.auditlogs.find_one(sort=[("createdAt", 1)])
        assert first["createdAt"] < datetime.now(UTC) - timedelta(days=70)
        assert ximler("demo", "--remove", env=env).stdout == "The demo is removed.\n"
        assert ximler("demo", "--remove", env=env).stdout == "There is no demo to remove.\n"
        assert database.name not in client.list_database_names()
    assert not (tmp_path / "data" / "demo").exists()
    assert {name: mine[name].count_documents({}) for name in mine.list_collection_names()} == before


def test_outside_of_development_and_over_other_files_there_is_no_demo(ximler, own, tmp_path):
    env, _ = own
    env["XIMLER_DATA_DIR"] = str(tmp_path)
    refused = ximler("demo", env=env)
    assert (refused.returncode, "--force" in refused.stderr) == (4, True)
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "thesis").write_text("mine")
    for option in ("--force", "--remove"):
        assert ximler("demo", "--force", option, env=env).returncode == 6
    assert (tmp_path / "demo" / "thesis").read_text() == "mine"
