"""`ximler db`, `users` and `shell`, typed as a person would, on a database of the test's own."""

import json

import pytest


def test_init_makes_what_status_then_finds_complete(ximler, empty):
    env, _ = empty
    before = ximler("db", "status", env=env)
    assert before.returncode == 1
    assert "missing" in before.stdout
    made = ximler("db", "init", env=env)
    assert (made.returncode, made.stdout) == (0, "The database is ready.\n")
    after = ximler("db", "status", "--json", env=env)
    assert (after.returncode, json.loads(after.stdout)) == (0, {"items": [], "next": None})


def test_a_successful_command_prints_only_its_result(ximler, own):
    env = {name: value for name, value in own[0].items() if name != "XIMLER_LOG_LEVEL"}
    for command in (("db", "init"), ("db", "status"), ("users", "list")):
        result = ximler(*command, env=env)
        assert (result.returncode, result.stderr) == (0, ""), command
        assert result.stdout
    assert "database connected" in ximler("users", "list", env={**env, "XIMLER_LOG_LEVEL": "debug"}).stderr


def test_status_names_a_remedy_for_each_difference(ximler, empty):
    env, database = empty
    ximler("db", "init", env=env)
    database.users.drop_index("deletedAt_1")
    database.users.create_index("nickname")
    result = ximler("db", "status", "--json", env=env)
    assert result.returncode == 1
    found = {(d["name"], d["state"]): d["remedy"] for d in json.loads(result.stdout)["items"]}
    assert found[("deletedAt_1", "missing")] == "ximler db init"
    assert "dropIndex" in found[("nickname_1", "extra")]


def test_seed_inserts_missing_plans_and_keeps_changed_ones(ximler, own):
    env, database = own
    database.plans.update_one({"id": "pro"}, {"$set": {"price": 39}})
    database.coupons.delete_one({"code": "WELCOME20"})
    result = ximler("db", "seed", env=env)
    assert result.stdout == "plans: nothing to insert\ncoupons: WELCOME20\n"
    assert database.plans.find_one({"id": "pro"})["price"] == 39


def test_adopt_moves_the_documents_of_usages(ximler, empty):
    env, database = empty
    ximler("db", "init", env=env)
    database.usages.insert_many([{"n": 1}, {"n": 2}])
    assert "usages" in ximler("db", "status", env=env).stdout
    assert json.loads(ximler("db", "adopt", "--json", env=env).stdout) == {"moved": 2}
    assert ximler("db", "adopt", env=env).stdout == "There is nothing to move.\n"
    assert database.usage.count_documents({}) == 2


def test_a_database_of_a_newer_ximler_is_refused(ximler, empty):
    env, database = empty
    ximler("db", "init", env=env)
    database.meta.update_one({"_id": "schema"}, {"$set": {"version": 99}})
    result = ximler("db", "status", env=env)
    assert result.returncode == 6
    assert "Upgrade Ximler" in result.stderr


def test_users_are_created_and_listed(ximler, own):
    env, _ = own
    arguments = ("users", "create", "--name", "Ada", "--email", "ADA@example.com", "--password-stdin", "--json")
    made = json.loads(ximler(*arguments, env=env, stdin="a long enough password\n").stdout)
    assert made["email"] == "ada@example.com"
    listed = json.loads(ximler("users", "list", "--json", env=env).stdout)
    assert listed == {"items": [made], "next": None}
    assert "password" not in made
    assert "ada@example.com" in ximler("users", "list", env=env).stdout


def test_a_taken_address_is_a_conflict(ximler, own):
    env, _ = own
    arguments = ("users", "create", "--name", "Ada", "--email", "ada@example.com", "--password-stdin")
    ximler(*arguments, env=env, stdin="a long enough password\n")
    result = ximler(*arguments, env=env, stdin="a long enough password\n")
    assert (result.returncode, result.stderr) == (
        6,
        "error: There is an account with the address ada@example.com already\n",
    )


def test_a_short_password_is_refused(ximler, own):
    env, _ = own
    result = ximler(
        "users", "create", "--name", "A", "--email", "a@example.com", "--password-stdin", env=env, stdin="short\n"
    )
    assert result.returncode == 2
    assert "password: must be 10 characters or more" in result.stderr


def test_lists_of_users_continue_with_a_cursor(ximler, own):
    env, database = own
    database.users.insert_many([{"name": f"u{i}", "email": f"u{i}@example.com", "password": "x"} for i in range(5)])
    seen, after = [], []
    while True:
        page = json.loads(ximler("users", "list", "--limit", "2", "--json", *after, env=env).stdout)
        seen += [user["email"] for user in page["items"]]
        if page["next"] is None:
            break
        after = ["--after", page["next"]]
    assert seen == [f"u{i}@example.com" for i in reversed(range(5))]


@pytest.mark.parametrize("command", [("up", "--port", "0"), ("up", "--port", "0", "--no-init"), ("worker", "--once")])
def test_nothing_works_on_a_database_that_a_newer_ximler_has_written(ximler, empty, command):
    env, database = empty
    database.meta.insert_one({"_id": "schema", "version": 99, "createdHere": True})
    result = ximler(*command, env=env)
    assert result.returncode == 6
    assert "Upgrade Ximler" in result.stderr


def test_the_shell_awaits(ximler, own):
    env, _ = own
    result = ximler("shell", "-c", "print(len(await db.plans.find({})))", env=env)
    assert result.stdout == "3\n"
    typed = ximler("shell", env=env, stdin="plans = await db.plans.find({})\nprint(sorted(p.id for p in plans))\n")
    assert "['enterprise', 'free', 'pro']" in typed.stdout


@pytest.mark.parametrize("code", ["1 / 0", "await db.users.patch({}, {'$set': {'nope': 1}})", "this is no Python"])
def test_failing_code_in_the_shell_sets_the_exit_code(ximler, own, code):
    env, _ = own
    result = ximler("shell", "-c", code, env=env)
    assert result.returncode == 1
    assert "Error" in result.stderr or "Invalid" in result.stderr


def test_commands_on_the_embedded_database_start_one_for_their_own_duration(ximler, tmp_path):
    env = {"XIMLER_LOG_LEVEL": "error"}
    assert ximler("db", "init", env=env).stdout == "The database is ready.\n"
    assert ximler("db", "status", env=env).returncode == 0
    assert not list((tmp_path / "ximler" / "mongodb").glob("*/mongod.lock.running"))


def test_an_additional_index_is_reported_and_does_not_prevent_a_start(ximler, empty):
    env, database = empty
    ximler("db", "init", env=env)
    database.projects.create_index("name")
    again = ximler("db", "init", "--json", env=env)
    [found] = json.loads(again.stdout)["items"]
    assert (again.returncode, found["name"], found["state"]) == (0, "name_1", "extra")
    assert ximler("db", "status", env=env).returncode == 1
