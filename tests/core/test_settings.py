"""Settings: sources, error messages, and hiding of secrets."""

import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from ximler.core.settings import Settings, SettingsError, documentation, load, variable_name
from ximler.core.settings_values import pattern_of

PASSWORD = "hunter2-is-my-password"
URI = f"mongodb://ximler:{PASSWORD}@db.example:27017/shop?replicaSet=rs"
KEY = "k" * 40

# A value for every setting, other than its default:
# as an environment variable says it, and as Python gets it.
GIVEN = {
    "mongodb_uri": (URI, URI),
    "database": ("shop", "shop"),
    "pool_size": ("25", 25),
    "server_selection_timeout_ms": ("100", 100),
    "socket_timeout_ms": ("200", 200),
    "data_dir": ("/srv/ximler", Path("/srv/ximler")),
    "mongod": ("/usr/bin/mongod", "/usr/bin/mongod"),
    "mongod_cache_mb": ("512", 512),
    "host": ("0.0.0.0", "0.0.0.0"),
    "port": ("9000", 9000),
    "workers": ("4", 4),
    "drain_seconds": ("0", 0),
    "keep_alive_s": ("120", 120),
    "public_url": ("https://x.example", "https://x.example"),
    "app_url": ("https://app.example/in", "https://app.example/in"),
    "asset_max_mb": ("5", 5),
    "trusted_proxies": ("10.0.0.0/8, ::1 ,", ("10.0.0.0/8", "::1")),
    "cors_origins": ("https://a.example,https://b.example", ("https://a.example", "https://b.example")),
    "metrics_token": ("a token for Prometheus", "a token for Prometheus"),
    "max_body_mb": ("5", 5),
    "in_flight_mb": ("64", 64),
    "max_connections": ("200", 200),
    "max_connections_per_address": ("50", 50),
    "graphql_introspection": ("false", False),
    "graphql_max_depth": ("9", 9),
    "worker": ("false", False),
    "graphql_max_cost": ("10001", 10_001),
    "graphql_timeout_s": ("5", 5),
    "graphql_trusted": ("/etc/ximler/queries.json", Path("/etc/ximler/queries.json")),
    "graphql_slow_ms": ("250", 250),
    "api_rate": ("7", 7),
    "api_burst": ("9", 9),
    "session_rate": ("3", 3),
    "session_burst": ("20", 20),
    "address_rate": ("30", 30),
    "address_burst": ("40", 40),
    "session_daily": ("500", 500),
    "environment": ("production", "production"),
    "secret_key": (KEY, KEY),
    "audit_key": ("0" * 43, "0" * 43),
    "audit_retention_days": ("400", 400),
    "audit_mongodb_uri": ("mongodb://db.example/shop", "mongodb://db.example/shop"),
    "smtp_url": ("smtp://mail.example:587", "smtp://mail.example:587"),
    "seller_country": ("DE", "DE"),
    "tax_rates": ("DE=19, FR=5.5", ("DE=19", "FR=5.5")),
    "tax_inclusive": ("true", True),
    "seller": ("Shop; 1 High Street", "Shop; 1 High Street"),
    "stripe_key": ("sk_test_abc", "sk_test_abc"),
    "stripe_webhook_secrets": ("whsec_0123456789, whsec_9876543210", ("whsec_0123456789", "whsec_9876543210")),
    "stripe_billing": ("true", True),
    "stripe_api": ("http://127.0.0.1:8420", "http://127.0.0.1:8420"),
    "mail_from": ("Shop <hello@shop.example>", "Shop <hello@shop.example>"),
    "session_days": ("7", 7),
    "session_max_days": ("40", 40),
    "argon2_memory_kib": ("47104", 47104),
    "argon2_time_cost": ("1", 1),
    "argon2_threads": ("3", 3),
    "breach_lookup_url": ("https://breach.example/range/", "https://breach.example/range/"),
    "geoip_file": ("/etc/ximler/cities.mmdb", Path("/etc/ximler/cities.mmdb")),
    "valkey_url": ("redis://v.example:6379", "redis://v.example:6379"),
    "operators_need_factor": ("true", True),
    "canvas_versions": ("20", 20),
    "canvas_versions_by_plan": ("Pro=200, Enterprise=1000", ("Pro=200", "Enterprise=1000")),
    "canvas_version_minutes": ("5", 5),
    "canvas_version_revisions": ("100", 100),
    "usage_alerts": ("50, 90", (50, 90)),
    "log_level": ("debug", "debug"),
    "log_format": ("json", "json"),
}


def toml(folder: Path, text: str) -> Path:
    file = folder / "ximler.toml"
    file.write_text(text)
    return file


def test_the_table_of_this_test_names_every_setting() -> None:
    assert GIVEN.keys() == set(Settings.__struct_fields__)


@pytest.mark.parametrize("name", GIVEN)
def test_every_setting_has_its_environment_variable(name: str) -> None:
    text, value = GIVEN[name]
    loaded = load({variable_name(name): text})
    assert getattr(loaded, name) == value
    assert getattr(load({}), name) != value
    others = [n for n in Settings.__struct_fields__ if n != name]
    assert [getattr(loaded, n) for n in others] == [getattr(Settings(), n) for n in others]


def test_the_usual_name_of_the_uri_is_kept_and_the_others_have_a_prefix() -> None:
    assert variable_name("mongodb_uri") == "MONGODB_URI"
    assert variable_name("port") == "XIMLER_PORT"
    assert load({"XIMLER_MONGODB_URI": URI}).mongodb_uri is None


def test_an_argument_wins_over_the_environment_and_that_over_toml_and_that_over_the_default(tmp_path: Path) -> None:
    file = toml(tmp_path, "port = 1001\nworkers = 3\nhost = '10.0.0.1'\n")
    loaded = load({"XIMLER_PORT": "1002", "XIMLER_HOST": "10.0.0.2"}, file=file, overrides={"port": 1003})
    assert (loaded.port, loaded.host, loaded.workers, loaded.pool_size) == (1003, "10.0.0.2", 3, 10)


def test_an_argument_of_none_counts_as_absent() -> None:
    assert load({"XIMLER_PORT": "1002"}, overrides={"port": None, "host": None}).port == 1002


def test_a_variable_of_blanks_counts_as_unset_and_blanks_around_a_value_do_not_count() -> None:
    loaded = load({"XIMLER_PORT": "  ", "MONGODB_URI": "", "XIMLER_HOST": " ::1 "})
    assert (loaded.port, loaded.mongodb_uri, loaded.host) == (8000, None, "::1")


def test_the_file_can_be_named_by_a_variable(tmp_path: Path) -> None:
    file = toml(tmp_path, "[[not toml")
    with pytest.raises(SettingsError, match=r"ximler.toml: not valid TOML"):
        load({"XIMLER_CONFIG": str(file)})
    file.write_text("cors_origins = ['https://a.example']\ndata_dir = '/srv/x'\ngraphql_introspection = false\n")
    loaded = load({"XIMLER_CONFIG": str(file)})
    assert loaded.cors_origins == ("https://a.example",)
    assert loaded.data_dir == Path("/srv/x")
    assert not loaded.graphql_introspection


def test_a_file_that_is_not_there_or_not_text_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"nowhere.toml: No such file"):
        load({}, file=tmp_path / "nowhere.toml")
    with pytest.raises(SettingsError, match="Is a directory"):
        load({}, file=tmp_path)
    (tmp_path / "binary.toml").write_bytes(b"port = \xff\xfe")
    with pytest.raises(SettingsError, match=r"binary.toml: not valid TOML"):
        load({}, file=tmp_path / "binary.toml")


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("port", "many", "int"),
        ("port", "-1", "0"),
        ("port", "65536", "65535"),
        ("pool_size", "0", "1"),
        ("drain_seconds", "601", "600"),
        ("argon2_memory_kib", "1024", "7168"),
        ("graphql_introspection", "perhaps", "bool"),
        ("environment", "staging", "development, production"),
        ("log_level", "LOUD", "debug, info, warning, error"),
        ("log_format", "xml", "json, console"),
        ("session_days", "99999999999999999999999999", "400"),
        ("public_url", "ximler.example", "https://"),
        ("public_url", "javascript:alert(1)", "https://"),
        ("public_url", "https://x.example/?a", "https://"),
        ("public_url", "http://0.0.0.0:8000", "that browsers use"),
    ],
)
def test_an_invalid_value_is_reported_with_variable_value_and_expectation(name: str, text: str, expected: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load({variable_name(name): text})
    assert caught.value.message.startswith(f"{variable_name(name)}: ")
    assert text in caught.value.message
    assert expected in caught.value.message
    assert list(caught.value.fields) == [name]
    assert caught.value.code == "SETTINGS_INVALID"


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("https://x.example/", "https://x.example"),
        ("HTTPS://X.Example:443", "https://x.example"),
        ("http://x.example:80/", "http://x.example"),
        ("http://[2001:DB8::1]:8000", "http://[2001:db8::1]:8000"),
        ("http://localhost:5173", "http://localhost:5173"),
        ("https://MÜNCHEN.de", "https://xn--mnchen-3ya.de"),
    ],
)
def test_origins_are_kept_as_browsers_write_them(given: str, kept: str) -> None:
    loaded = load({"XIMLER_PUBLIC_URL": given, "XIMLER_CORS_ORIGINS": f"{given}, *"})
    assert loaded.public_url == kept
    assert loaded.cors_origins == (kept, "*")


@pytest.mark.parametrize(
    ("listed", "origin", "allowed"),
    [
        ("https://*.Example.com", "https://app.example.com", True),
        ("https://*.example.com", "https://a-1.b.example.com", True),
        ("https://*.example.com:8443", "https://app.example.com:8443", True),
        ("https://*.example.com", "https://example.com", False),
        ("https://*.example.com", "https://appXexample.com", False),
        ("https://*.example.com", "http://app.example.com", False),
        ("https://*.example.com", "https://evil.test/.example.com", False),
        ("https://*.example.com", "https://evil.test?.example.com", False),
        ("https://*.example.com", "https://.example.com", False),
        ("https://a.example.com", "https://aXexample.com", False),
        ("*", "https://app.example.com", False),  # any page may call the API, but none is named
    ],
)
def test_a_listed_origin_may_stand_for_all_subdomains(listed: str, origin: str, allowed: bool) -> None:
    pattern = pattern_of(load({"XIMLER_CORS_ORIGINS": listed}).cors_origins)
    assert (re.fullmatch(pattern, origin) is not None) == allowed


def test_a_session_cannot_be_left_unused_for_longer_than_it_lasts() -> None:
    with pytest.raises(SettingsError, match=r"^XIMLER_SESSION_DAYS: .*XIMLER_SESSION_MAX_DAYS.*90 \(got .91.\)"):
        load({"XIMLER_SESSION_DAYS": "91"})
    assert load({"XIMLER_SESSION_MAX_DAYS": "7"}).session_days == 7


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        ("XIMLER_PUBLIC_URL", "https://x.example/ximler"),
        ("XIMLER_PUBLIC_URL", "https://x.example/ximler/"),
        ("XIMLER_PUBLIC_URL", "https://user@x.example"),
        ("XIMLER_PUBLIC_URL", "https://x.example:port"),
        ("XIMLER_PUBLIC_URL", "https://*.example"),
        ("XIMLER_PUBLIC_URL", "https://a,b.example"),
        ("XIMLER_HOST", "http://localhost"),
        ("XIMLER_HOST", "a b"),
        ("XIMLER_DATABASE", "a.b"),
        ("XIMLER_DATABASE", "a" * 64),
        ("XIMLER_BREACH_LOOKUP_URL", "api.pwnedpasswords.com"),
        ("XIMLER_CORS_ORIGINS", "https://app.example;https://b.example"),
        ("XIMLER_CORS_ORIGINS", "app.example"),
        ("XIMLER_CORS_ORIGINS", "https://app.example/path"),
        ("XIMLER_CORS_ORIGINS", "https://a.example, ftp://b.example"),
        ("XIMLER_CORS_ORIGINS", "null"),
        ("XIMLER_CORS_ORIGINS", "https://app*"),  # also https://app.evil.test
        ("XIMLER_CORS_ORIGINS", "https://*"),
        ("XIMLER_CORS_ORIGINS", "https://a.*.example"),
        ("XIMLER_CORS_ORIGINS", "https://*.example/?x"),
        ("XIMLER_MAIL_FROM", "Acme"),
        ("XIMLER_MAIL_FROM", "Acme, Inc <a@b.example>"),
        ("XIMLER_MAIL_FROM", "Acme <>"),
        ("XIMLER_MAIL_FROM", "a@b.example, c@d.example"),
        ("XIMLER_MAIL_FROM", "a@b.example\nBcc: x@y.example"),
        ("XIMLER_MAIL_FROM", "x@"),
        ("XIMLER_MAIL_FROM", "Acme <a@ b.example>"),
        ("XIMLER_MAIL_FROM", "Acme: a@b.example;"),
    ],
)
def test_a_value_that_cannot_work_is_refused_at_the_start_with_the_right_form(variable: str, text: str) -> None:
    with pytest.raises(SettingsError, match=f"^{variable}: Expected .*, such as "):
        load({variable: text})


@pytest.mark.parametrize(
    "text", ["a@b.example", '"Acme, Inc" <a@b.example>', "Jörg <post@münchen.de>", "X <a@localhost>"]
)
def test_a_sender_is_one_mailbox(text: str) -> None:
    assert load({"XIMLER_MAIL_FROM": text}).mail_from == text


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("port = 'many'", "port"),
        ("port = true", "port"),
        ("cors_origins = 'https://a.example'", "cors_origins"),
        ("cors_origins = ['https://a.example', 5]", "cors_origins"),
        ("data_dir = 5", "data_dir"),
        ("[port]\nhttp = 80", "port"),
        ("prot = 80", "prot"),
    ],
)
def test_a_wrong_line_of_the_file_names_file_and_setting(tmp_path: Path, text: str, name: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load({}, file=toml(tmp_path, text))
    assert caught.value.message.startswith(f"{tmp_path / 'ximler.toml'}: {name}: ")
    assert list(caught.value.fields) == [name]


def test_a_wrong_argument_is_named_as_the_command_line_names_it() -> None:
    with pytest.raises(SettingsError, match=r"^--data-dir: Expected a path"):
        load({}, overrides={"data_dir": 5})


def test_messages_about_long_values_stay_short() -> None:
    with pytest.raises(SettingsError) as caught:
        load({"XIMLER_PORT": "9" * 100_000})
    assert len(caught.value.message) < 300


@pytest.mark.parametrize("text", [f"mongodb_uri = ['{URI}']", f"secret_key = ['{PASSWORD}']", f"mongodb_url = '{URI}'"])
def test_an_invalid_secret_is_not_shown_in_the_error(tmp_path: Path, text: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load({}, file=toml(tmp_path, text))
    assert PASSWORD not in f"{caught.value!r} {caught.value.fields}"


def test_a_short_secret_is_not_repeated() -> None:
    with pytest.raises(SettingsError) as caught:
        _ = load({"XIMLER_SECRET_KEY": PASSWORD}).secret_keys
    assert PASSWORD not in f"{caught.value!r} {caught.value.fields}"


def test_settings_can_be_shown_without_their_secrets() -> None:
    loaded = Settings(mongodb_uri=URI, secret_key=KEY, port=9000)
    rich = list(loaded.__rich_repr__())
    for shown in (repr(loaded), str(loaded), f"{loaded}", f"{[loaded]}", f"{rich}"):
        assert PASSWORD not in shown
        assert KEY not in shown
        assert "9000" in shown
    assert repr(Settings()) == "Settings()"


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        Settings().port = 5  # type: ignore[misc]  # that is the point


@pytest.mark.parametrize(
    ("uri", "name"),
    [
        (None, "ximler"),
        ("mongodb://localhost:27017", "ximler"),
        ("mongodb://localhost:27017/", "ximler"),
        ("mongodb://localhost:27017/?replicaSet=rs", "ximler"),
        ("mongodb://localhost:27017/shop", "shop"),
        ("mongodb://a:1,b:2,c:3/shop?replicaSet=rs", "shop"),
        ("mongodb+srv://u:p@cluster.mongodb.net/shop?retryWrites=true&w=majority", "shop"),
        ("mongodb://[::1]:27017/shop", "shop"),
        ("mongodb://u:a#b[c@localhost/shop", "shop"),
        ("mongodb://%2Ftmp%2Fmongod.sock/shop", "shop"),
        ("mongodb://localhost/caf%C3%A9", "café"),
        ("mongodb://u:p%40ss%2F@localhost/shop?authSource=a@b/c", "shop"),
    ],
)
def test_the_database_is_the_one_in_the_uri_unless_it_is_named(uri: str | None, name: str) -> None:
    assert Settings(mongodb_uri=uri).database_name == name
    assert Settings(mongodb_uri=uri, database="other").database_name == "other"


def test_the_environment_defaults_to_production_only_with_a_uri() -> None:
    assert Settings().development
    assert not Settings(mongodb_uri=URI).development
    assert Settings(mongodb_uri=URI, environment="development").development
    assert not Settings(environment="production").development


def test_links_start_with_the_public_url_or_host_and_port() -> None:
    assert Settings().base_url == "http://127.0.0.1:8000"
    assert Settings(host="::1").base_url == "http://[::1]:8000"
    assert Settings(public_url="https://x.example/").base_url == "https://x.example"


def test_the_data_folder_is_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert Settings(data_dir=Path("~/data")).data_path == tmp_path / "data"
    assert Settings(data_dir=Path("data")).data_path == tmp_path / "data"
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "share"))
    assert Settings().data_path.name == "ximler"
    assert Settings().data_path.is_absolute()


def test_a_key_is_required_with_a_uri_and_the_error_says_how_to_make_one() -> None:
    with pytest.raises(SettingsError, match=r"XIMLER_SECRET_KEY is required.*token_urlsafe") as caught:
        Settings(mongodb_uri=URI).with_secret()
    assert caught.value.fields == {"secret_key": "is missing"}


@pytest.mark.parametrize("key", ["", " , ", "short", f"{KEY},short"])
def test_a_key_that_is_too_short_or_empty_is_refused(key: str) -> None:
    with pytest.raises(SettingsError, match="XIMLER_SECRET_KEY"):
        Settings(mongodb_uri=URI, secret_key=key).with_secret()


def test_keys_are_rotated_by_prepending() -> None:
    assert load({"XIMLER_SECRET_KEY": f" {'n' * 32} , {'o' * 32},"}).secret_keys == (b"n" * 32, b"o" * 32)


def test_a_given_key_is_kept_and_nothing_is_written(tmp_path: Path) -> None:
    given_one = Settings(secret_key=KEY, data_dir=tmp_path / "data")
    assert given_one.with_secret() is given_one
    assert not (tmp_path / "data").exists()


def test_a_key_of_any_bytes_is_usable() -> None:
    assert load({"XIMLER_SECRET_KEY": os.fsdecode(b"\xff" * 32)}).secret_keys == (b"\xff" * 32,)


def test_the_embedded_server_gets_a_key_of_its_own_that_only_its_owner_can_read(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "data"
    first = Settings(data_dir=folder).with_secret()
    assert len(first.secret_keys[0]) >= 32
    assert stat.S_IMODE((folder / "secret_key").stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert Settings(data_dir=folder).with_secret() == first
    assert Settings(data_dir=tmp_path / "elsewhere").with_secret().secret_key != first.secret_key


@pytest.mark.slow
def test_processes_that_race_for_the_key_end_with_the_same_one(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from ximler.core.settings import Settings\n"
        "print('ready', flush=True); sys.stdin.readline()\n"
        "print(Settings(data_dir=Path(sys.argv[1])).with_secret().secret_key)\n"
    )
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(tmp_path / "data")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(8)
    ]
    for racer in racers:
        assert racer.stdout
        assert racer.stdout.readline() == "ready\n"
    for racer in racers:
        assert racer.stdin
        racer.stdin.write("go\n")
        racer.stdin.flush()
    keys = {racer.communicate(timeout=60)[0].strip() for racer in racers}
    assert len(keys) == 1
    assert [p.name for p in (tmp_path / "data").iterdir()] == ["secret_key"]


def test_a_folder_that_cannot_be_written_is_named_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingsError, match=r"secret_key: Not a directory: choose another folder with --data-dir"):
        Settings(data_dir=tmp_path / "file" / "data").with_secret()


@pytest.mark.parametrize("content", [b"", b"short", b"\xff\xfe"])
def test_a_damaged_key_file_is_named_rather_than_replaced(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "secret_key").write_bytes(content)
    with pytest.raises(SettingsError, match=r"secret_key holds no key"):
        Settings(data_dir=tmp_path).with_secret()
    assert (tmp_path / "secret_key").read_bytes() == content


def test_the_documentation_has_a_row_for_every_setting() -> None:
    rows = documentation()
    assert [row[0] for row in rows] == [variable_name(name) for name in Settings.__struct_fields__]
    assert all(meaning.endswith(("`.", ".")) for _, _, meaning in rows)
    assert ("XIMLER_PORT", "8000") in [row[:2] for row in rows]
    assert ("XIMLER_WORKER", "true") in [row[:2] for row in rows]


@pytest.mark.slow
@hypothesis_settings(deadline=None, max_examples=200)
@given(st.dictionaries(st.sampled_from([variable_name(n) for n in GIVEN]), st.text(max_size=30), max_size=6))
def test_any_environment_gives_settings_or_an_error_that_names_a_variable(environ: dict[str, str]) -> None:
    try:
        loaded = load({**environ, "XIMLER_CONFIG": ""})
    except SettingsError as problem:
        assert problem.message.split(":")[0] in environ  # noqa: PT017 (either outcome is right)
    else:
        assert msgspec.structs.asdict(loaded).keys() == GIVEN.keys()


@pytest.mark.parametrize("name", GIVEN)
def test_a_setting_that_carries_a_credential_is_marked_secret_and_shown_nowhere(name: str) -> None:
    """By its name: a key, a token, a URI or URL with a password. Its value is in no repr and no error."""
    credential = name.endswith(("_key", "_token", "_uri", "_secrets")) or name in ("smtp_url", "valkey_url")
    assert ("…" in repr(load({variable_name(name): GIVEN[name][0]}))) == credential


def test_stripes_key_needs_the_endpoints_secret_and_a_live_one_production() -> None:
    secrets = {"XIMLER_STRIPE_WEBHOOK_SECRETS": "whsec_of_the_endpoint", "XIMLER_SECRET_KEY": KEY}
    live = {**secrets, "XIMLER_STRIPE_KEY": "sk_live_abc"}
    for environ, problem in (
        (live, "XIMLER_STRIPE_KEY: a live key takes real money: use a test key in development"),
        ({"XIMLER_STRIPE_KEY": "sk_test_abc"}, "XIMLER_STRIPE_WEBHOOK_SECRETS: required with XIMLER_STRIPE_KEY"),
        ({"XIMLER_STRIPE_KEY": "pk_test_abc"}, "XIMLER_STRIPE_KEY: Expected a secret or restricted key of Stripe"),
    ):
        with pytest.raises(SettingsError) as caught:
            load(environ).with_secret()
        assert caught.value.message.startswith(problem)
        assert "abc" not in caught.value.message
    for environ in ({**live, "XIMLER_ENVIRONMENT": "production"}, {**secrets, "XIMLER_STRIPE_KEY": "rk_test_abc"}):
        assert load(environ).with_secret().stripe_key == environ["XIMLER_STRIPE_KEY"]
