"""An operator's day at the command line."""

import json
import zipfile

import pytest

ADA = "ada@example.com"


@pytest.fixture
def shop(ximler, own):
    """`shop("lock", …)`: `ximler users lock …` where Ada has an account."""
    env, database = own
    made = ximler(
        "users", "create", "--name", "Ada", "--email", ADA, "--password-stdin", env=env, stdin="correct horse battery\n"
    )
    assert made.returncode == 0, made.stderr

    def run(*arguments):
        return ximler("users", *arguments, env=env)

    return run, database


def test_an_account_is_found_shown_locked_and_opened(shop):
    run, database = shop
    assert ADA in run("search", "ada").stdout
    assert "No e-mail address" in run("search", "zoe").stdout
    assert json.loads(run("search", "AD", "--json").stdout)["items"][0]["email"] == ADA
    shown = run("show", ADA).stdout
    assert f"email          {ADA}\n" in shown
    assert "lockedAt       -\n" in shown
    assert "plan           free\n" in shown
    assert "usage          projects 0 of 3; storage 0 of 1,000,000,000; apiCalls 0 of 1,000\n" in shown
    assert "activeKeys     0\n" in shown
    locked = json.loads(run("lock", ADA, "--reason", "a chargeback", "--json").stdout)
    assert locked["lockReason"] == "a chargeback"
    assert "locked" in run("list").stdout
    assert run("lock", ADA).returncode == 2
    assert json.loads(run("unlock", locked["id"], "--json").stdout)["lockedAt"] is None
    assert {entry["action"] for entry in database.auditlogs.find({})} >= {
        "accounts.user.locked",
        "accounts.user.viewed",
    }
    assert database.auditlogs.find_one({"action": "accounts.user.locked"})["metadata"]["via"] == "cli"


def test_roles_are_granted_and_taken_away(shop):
    run, database = shop
    assert run("grant", ADA, "--role", "operator").stdout == f"{ADA} is now an operator.\n"
    assert run("grant", ADA, "--role", "operator").stdout == f"{ADA} is already an operator.\n"
    granted = json.loads(run("grant", ADA, "--role", "operator", "--json").stdout)
    assert granted["role"] == "operator"
    assert run("grant", ADA, "--role", "emperor").returncode == 2
    assert database.credentials.find_one({})["role"] == "operator"
    assert "operator" in run("list").stdout
    assert run("revoke-role", ADA).stdout == f"{ADA} no longer has a role.\n"
    assert run("revoke-role", ADA).stdout == f"{ADA} has no role.\n"


def test_sessions_and_history_are_shown(shop):
    run, _ = shop
    assert run("sessions", ADA).stdout == "There are no sessions.\n"
    assert run("revoke-sessions", ADA).stdout == "0 sessions ended.\n"
    assert json.loads(run("sessions", ADA, "--json").stdout) == {"items": [], "next": None}
    run("lock", ADA, "--reason", "a test")
    events = json.loads(run("history", ADA, "--json").stdout)["items"]
    assert [event["action"] for event in events] == ["accounts.user.locked", "accounts.sessions.revoked"]
    assert "a test" in run("history", ADA).stdout


@pytest.mark.parametrize("command", ["show", "verify", "unlock", "sessions", "revoke-sessions", "history"])
def test_an_unknown_user_is_not_found(shop, command):
    run, _ = shop
    for who in ("nobody@example.com", "0" * 24):
        result = run(command, who)
        assert (result.returncode, result.stdout) == (5, ""), result.stderr


def test_all_data_of_a_user_is_exported_to_a_file(shop, tmp_path):
    run, database = shop
    file = tmp_path / "ada.zip"
    assert run("export", "nobody@example.com", str(file)).returncode == 5
    assert list(tmp_path.glob("*ada.zip*")) == []
    written = run("export", ADA, str(file))
    assert written.stderr.startswith(f"{file}: "), written.stderr
    assert file.stat().st_mode & 0o777 == 0o600
    with zipfile.ZipFile(file) as archive:
        assert archive.testzip() is None
        assert json.loads(archive.read("account.json"))["email"] == ADA
    assert database.auditlogs.count_documents({"action": "privacy.data.exported"}) == 1
    assert "exists already" in run("export", ADA, str(file)).stderr
    assert run("export", ADA, str(tmp_path / "no" / "such" / "folder.zip")).returncode == 2
    assert list(tmp_path.glob(".ada*")) == []
