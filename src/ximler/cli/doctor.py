"""`ximler doctor`: the settings in force, and every check of an installation with its remedy.

A check never raises: the database may be down, the settings unusable, and the others are still shown. It
changes nothing, except that it starts the embedded server for its own duration where none is running.
"""

import asyncio
import contextlib
import http.client
import platform
import re
import shutil
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

import click
import msgspec

from ximler import __version__
from ximler.cli import context
from ximler.core import settings as configuration
from ximler.core.clock import utc_now
from ximler.core.errors import XimlerError
from ximler.core.networks import is_loopback
from ximler.core.settings import Settings, SettingsError

if TYPE_CHECKING:
    from ximler.database import Database

_SMALL_DISK, _FULL_DISK = 5 * 10**9, 10**9  # bytes free
_CLOCK_WARNING, _CLOCK_ERROR = timedelta(seconds=2), timedelta(seconds=30)  # a code of a second factor lasts 30 s
_MARKS = {"ok": "ok", "warning": "WARNING", "error": "ERROR"}

# The first release of each series that fixes CVE-2025-14847: unauthenticated clients read memory of the
# server through compressed messages.
_FIXED = {(4, 4): 30, (5, 0): 32, (6, 0): 27, (7, 0): 28, (8, 0): 17, (8, 2): 3}
_CVE = "CVE-2025-14847"


State = Literal["ok", "warning", "error"]


class Check(msgspec.Struct, frozen=True):
    name: str
    state: State
    detail: str
    remedy: str = ""


class Setting(msgspec.Struct, frozen=True):
    """A setting in force. The value of a secret is `…`, or null if there is none."""

    name: str
    value: Any
    source: str


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print all settings and checks as JSON.")
@context.database_options
def doctor(as_json: bool, data_dir: Path | None, mongodb_uri: str | None) -> int:
    """Check settings, database, mail, keys, clock and disk.

    Each check is ok, a warning or an error with its remedy. Exit code 0: no error (there may be warnings), 1:
    at least one error. Changes nothing and sends no mail. Without a running server it starts the embedded
    database for its own duration, if there is one.
    """
    given: dict[str, Any] = {"data_dir": data_dir, "mongodb_uri": mongodb_uri}
    try:
        loaded = context.load(warns=False, **given)
    except SettingsError as problem:
        checks = [Check("settings", "error", problem.message, "correct it"), *_unknown()]
        shown = []
    else:
        shown = _settings(loaded, configuration.sources(overrides=given))
        checks = context.run(_examine(loaded))
    failed = any(check.state == "error" for check in checks)
    if as_json:
        context.print_json({"ok": not failed, "settings": shown, "checks": checks})
    else:
        _print(shown, checks)
    return int(failed)


def _print(shown: list[Setting], checks: list[Check]) -> None:
    changed = [setting for setting in shown if setting.source != "default"]
    click.echo("Settings (the others have their defaults):" if changed else "All settings have their defaults.")
    for setting in changed:
        click.echo(f"  {configuration.variable_name(setting.name)} = {setting.value}   ({setting.source})")
    click.echo()
    width = max(len(check.name) for check in checks)
    for check in checks:
        click.echo(f"{_MARKS[check.state]:<8} {check.name:<{width}}  {check.detail}")
        if check.remedy:
            click.echo(f"{'':<9}{'':<{width}}  → {check.remedy}")
    counts = {state: sum(check.state == state for check in checks) for state in _MARKS}
    click.echo(
        f"\n{context.counted(counts['error'], 'error')}, {context.counted(counts['warning'], 'warning')}, "
        f"{counts['ok']} ok."
    )


def _settings(loaded: Settings, sources: dict[str, str]) -> list[Setting]:
    shown = []
    for name in Settings.__struct_fields__:
        value = getattr(loaded, name)
        if configuration.is_secret(name):
            value = "…" if value else None
        elif isinstance(value, Path):
            value = str(value)
        elif isinstance(value, tuple):
            value = ",".join(map(str, value))
        source = sources.get(name, "default")
        variable = configuration.variable_name(name)
        shown.append(Setting(name, value, "environment" if source == variable else source))
    return shown


async def _examine(loaded: Settings) -> list[Check]:
    return [
        Check("versions", "ok", f"ximler {__version__}, Python {platform.python_version()}, {_libraries()}"),
        *_unknown(),
        _environment(loaded),
        *_keys(loaded),
        _payments(loaded),
        *await asyncio.to_thread(_folder, loaded),
        *_mongod(loaded),
        *await _database(loaded),
        *await _valkey(loaded),
        *_geoip(loaded),
        await _mail(loaded),
        _public_url(loaded),
        proxies(loaded),
        _app_url(loaded),
        await asyncio.to_thread(_server, loaded),
    ]


def _libraries() -> str:
    from importlib.metadata import version

    return ", ".join(f"{name} {version(name)}" for name in ("pymongo", "litestar", "uvicorn"))


def _unknown() -> list[Check]:
    return [
        Check(
            "variable",
            "warning",
            f"{name} is not a setting of Ximler and is ignored",
            f"write {resembled}" if resembled else "remove it; the README lists every variable",
        )
        for name, resembled in configuration.unknown_variables().items()
    ]


def _environment(loaded: Settings) -> Check:
    if not loaded.development:
        return Check("environment", "ok", "production")
    if not is_loopback(loaded.host) or (loaded.public_url and not is_loopback(urlsplit(loaded.public_url).hostname)):
        return Check(
            "environment",
            "warning",
            "development, but reachable from elsewhere: the log contains confirmation links, and the sandbox takes payments",
            "set XIMLER_ENVIRONMENT=production",
        )
    return Check("environment", "ok", "development: confirmation links are logged, payments go to the sandbox")


def _keys(loaded: Settings) -> list[Check]:
    from ximler.audit.keys import FILE, NoSealKey, SealKeys

    checks = []
    generated = loaded.mongodb_uri is None
    if generated and loaded.secret_key is None and not (loaded.data_path / "secret_key").exists():
        checks.append(Check("secret key", "ok", "none yet: the first 'ximler up' generates one in the data folder"))
    else:
        try:
            keys = loaded.with_secret().secret_keys
            source = "XIMLER_SECRET_KEY" if loaded.secret_key else str(loaded.data_path / "secret_key")
            checks.append(Check("secret key", "ok", f"{context.counted(len(keys), 'key')} in {source}"))
        except SettingsError as problem:
            if "stripe" not in str(problem.fields):
                checks.append(Check("secret key", "error", problem.message, "set XIMLER_SECRET_KEY"))
    if generated and loaded.audit_key is None and not (loaded.data_path / FILE).exists():
        checks.append(Check("sealing key", "ok", "none yet: the first 'ximler up' generates one in the data folder"))
        return checks
    try:
        sealing = SealKeys.load(loaded)
    except NoSealKey as problem:
        checks.append(Check("sealing key", "warning", "the audit log is not sealed", problem.message))
    except (SettingsError, OSError) as problem:
        checks.append(Check("sealing key", "error", str(problem), "set XIMLER_AUDIT_KEY ('ximler audit key --new')"))
    else:
        if sealing.signing is None:
            remedy = "let XIMLER_AUDIT_KEY begin with a key that is not public"
            checks.append(Check("sealing key", "warning", "only public keys: this process seals nothing", remedy))
        else:
            checks.append(Check("sealing key", "ok", context.counted(len(sealing.known), "key")))
    return checks


def _payments(loaded: Settings) -> Check:
    if loaded.stripe_key is None:
        if loaded.development:
            return Check("payments", "ok", "sandbox")
        return Check("payments", "warning", "no payment provider: nothing can be bought", "set XIMLER_STRIPE_KEY")
    try:
        loaded.with_secret()
    except SettingsError as problem:
        if "stripe" in str(problem.fields):
            return Check("payments", "error", problem.message, "correct it")
    return Check("payments", "ok", f"Stripe, {'live' if '_live_' in loaded.stripe_key else 'test'} mode")


def _folder(loaded: Settings) -> list[Check]:
    path = loaded.data_path
    there = next(folder for folder in (path, *path.parents) if folder.exists())
    free = shutil.disk_usage(there).free
    state: State = "error" if free < _FULL_DISK else "warning" if free < _SMALL_DISK else "ok"
    remedy = "" if state == "ok" else "free some space, or move the folder (XIMLER_DATA_DIR)"
    checks = [Check("disk", state, f"{free / 1e9:,.1f} GB free for {path}", remedy)]
    return [*checks, folder_mode(path)]


def _mongod(loaded: Settings) -> list[Check]:
    """Checked even while a server runs, because the next start needs the file."""
    if loaded.mongodb_uri is not None or loaded.mongod is None or shutil.which(loaded.mongod):
        return []
    return [Check("mongod file", "error", f"{loaded.mongod} is not a program", "correct XIMLER_MONGOD, or unset it")]


def proxies(loaded: Settings) -> Check:
    from ximler.http.requests import TrustedProxies

    try:
        TrustedProxies(loaded.trusted_proxies)
    except SettingsError as problem:
        return Check("proxies", "error", problem.message, "correct XIMLER_TRUSTED_PROXIES")
    if loaded.trusted_proxies:
        return Check("proxies", "ok", f"client addresses are taken from {', '.join(loaded.trusted_proxies)}")
    if urlsplit(loaded.base_url).scheme == "https":
        shared = "the proxy that ends TLS is not trusted: all clients share its address and limits"
        return Check("proxies", "warning", shared, "set XIMLER_TRUSTED_PROXIES to the proxy's address")
    return Check("proxies", "ok", "none")


def folder_mode(path: Path) -> Check:
    if not path.exists():
        return Check("data folder", "ok", f"{path} does not exist yet")
    mode = path.stat().st_mode & 0o777
    if mode & 0o077:
        return Check("data folder", "warning", f"other users may read {path} (mode {mode:o})", f"chmod 700 {path}")
    return Check("data folder", "ok", f"{path}, readable by its owner only")


async def _database(loaded: Settings) -> list[Check]:
    try:
        async with _connected(loaded) as database:
            if database is None:
                return [Check("database", "ok", "none yet: the first 'ximler up' creates it")]
            return await _database_checks(loaded, database)
    except XimlerError as problem:
        remedy = "start it, or correct MONGODB_URI" if loaded.mongodb_uri else "run 'ximler up' and read its log"
        return [Check("database", "error", problem.message, remedy)]


@contextlib.asynccontextmanager
async def _connected(loaded: Settings) -> "AsyncIterator[Database | None]":
    """The database; None where the embedded one was never started, which a check must not create."""
    from ximler.embedded.data_dir import DataDir

    if loaded.mongodb_uri is None and not DataDir(loaded.data_path).home.exists():
        yield None
        return
    async with context.database(loaded) as database:
        yield database


async def _database_checks(loaded: Settings, database: "Database") -> list[Check]:
    from ximler import setup
    from ximler.database import migrating, sync
    from ximler.database.failures import translated
    from ximler.migrations import MIGRATIONS

    before = utc_now()
    try:
        hello = await database.client.admin.command("hello")
        build = await database.client.admin.command("buildInfo")
    except Exception as error:  # reported as a check
        raise translated(error, database.name) from error
    own = before + (utc_now() - before) / 2
    members = ", ".join(hello.get("hosts", ()))
    where = "embedded" if loaded.mongodb_uri is None else "of your own"
    kind = f"replica set {hello['setName']} ({members})" if "setName" in hello else "sharded cluster"
    checks = [
        Check("database", "ok", f"MongoDB {build['version']}, {where}, database {database.name!r}"),
        Check("replica set", "ok", kind),
        mongod_release(loaded, build["version"]),
        clock(abs(hello["localTime"].replace(tzinfo=own.tzinfo) - own)),
    ]
    try:
        if not await sync.check_version(database):
            remedy = "ximler db init, or start 'ximler up'"
            checks.append(Check("schema", "warning", "the database is not up to date for this version", remedy))
        differences = await setup.status(database)
        for part in ("collection", "index", "validator", "seed", "documents"):
            found = [each for each in differences if each.what == part and each.state != "extra"]
            names = ", ".join(f"{each.collection}.{each.name}" for each in found[:5])
            more = f" and {len(found) - 5} more" if len(found) > 5 else ""
            plural = {"index": "indexes", "documents": "documents"}.get(part, f"{part}s")
            if found:
                state: State = "error" if part in ("collection", "index") else "warning"
                detail = f"{len(found)} missing or changed: {names}{more}"
                checks.append(Check(plural, state, detail, found[0].remedy))
            elif part != "documents":
                checks.append(Check(plural, "ok", "complete"))
        if pending := await migrating.pending(database, MIGRATIONS):
            names = ", ".join(each.name for each in pending)
            checks.append(Check("migrations", "warning", f"pending: {names}", "ximler db migrate"))
        else:
            checks.append(Check("migrations", "ok", "none pending"))
        names_of_plans = {plan.name.strip().casefold() for plan in await database.plans.find({})}
        if unknown := sorted(loaded.versions_by_plan.keys() - names_of_plans):
            detail = f"XIMLER_CANVAS_VERSIONS_BY_PLAN names plans that do not exist: {', '.join(unknown)}"
            checks.append(
                Check("versions by plan", "warning", detail, "correct the names: see 'ximler billing plan list'")
            )
    except XimlerError as problem:
        checks.append(Check("schema", "error", problem.message, "upgrade Ximler, or connect to another database"))
    return checks


def mongod_release(loaded: Settings, version: str) -> Check:
    """Whether the server contains the fix of CVE-2025-14847.
    The embedded one listens on loopback, without compression."""
    major, minor, patch = ([int(part) for part in re.findall(r"\d+", version)] + [0, 0, 0])[:3]
    fixed = _FIXED.get((major, minor))
    if (major, minor) > (8, 2) or (fixed is not None and patch >= fixed):
        return Check("mongod", "ok", f"{version} contains the fix of {_CVE}")
    old = f"{version} is older than the fix of {_CVE}"
    if loaded.mongodb_uri is not None:
        if all(map(is_loopback, mongodb_hosts(loaded.mongodb_uri))):
            return Check("mongod", "ok", f"{old}, and listens on loopback as far as MONGODB_URI shows")
        newest = f"{major}.{minor}.{fixed}" if fixed else "a supported release"
        return Check("mongod", "error", f"{old}: anyone who reaches it reads its memory", f"upgrade it to {newest}")
    if is_loopback(loaded.host) and loaded.development:
        return Check("mongod", "ok", f"{old}; it listens on loopback only, without compression")
    return Check(
        "mongod",
        "warning",
        f"{old}; it listens on loopback only, without compression, but this installation serves others",
        "set XIMLER_MONGOD to a newer mongod, or MONGODB_URI to a MongoDB of your own",
    )


def clock(difference: timedelta) -> Check:
    """The difference between this machine's clock and the database's, which decides times and periods."""
    seconds = difference.total_seconds()
    detail = f"{seconds:,.1f} s from the database's"
    remedy = "synchronise both clocks (NTP)"
    if difference >= _CLOCK_ERROR:
        return Check("clock", "error", f"{detail}: codes of second factors and signatures fail", remedy)
    if difference >= _CLOCK_WARNING:
        return Check("clock", "warning", detail, remedy)
    return Check("clock", "ok", detail)


async def _valkey(loaded: Settings) -> list[Check]:
    """Whether Valkey answers, evicts well, and how many reports it has spared the database."""
    if loaded.valkey_url is None:
        return []
    from ximler.database.results import counts
    from ximler.database.valkey import Valkey
    from ximler.graphql.reports import KINDS

    valkey = Valkey(loaded.valkey_url, prefix=f"ximler:{loaded.database_name}")
    try:
        server, found = await valkey.server(), await counts(valkey, KINDS)
    finally:
        await valkey.close()
    if server is None or found is None:
        detail = "does not answer: each process divides the burst limits, and computes each report"
        return [Check("Valkey", "error", detail, "start it, or correct VALKEY_URL")]
    version = server.get("valkey_version") or server.get("redis_version")
    policy, limit = server.get("maxmemory_policy"), server.get("maxmemory")
    hits, misses = (sum(values) for values in zip(*found.values(), strict=True))
    evicted = f"; {server.get('evicted_keys', 0):,} keys evicted" if server.get("evicted_keys") else ""
    detail = f"{version}; reports: {hits:,} of {hits + misses:,} found there{evicted}"
    if not limit or policy != "volatile-ttl":
        detail += f"; maxmemory {limit}, maxmemory-policy {policy}"
        return [Check("Valkey", "warning", detail, "set maxmemory, and maxmemory-policy volatile-ttl")]
    return [Check("Valkey", "ok", detail)]


def _geoip(loaded: Settings) -> list[Check]:
    from ximler.accounts import origins

    try:
        origins.check(loaded)
    except SettingsError as problem:
        return [Check("GeoIP file", "error", str(problem), "correct XIMLER_GEOIP_FILE, or unset it")]
    return [Check("GeoIP file", "ok", str(loaded.geoip_file))] if loaded.geoip_file else []


async def _mail(loaded: Settings) -> Check:
    from ximler.notifications.email import Smtp

    if loaded.smtp_url is None:
        folder = loaded.data_path / "mail"
        if loaded.development:
            return Check("mail", "ok", f"not sent, but written to {folder}, and shown at /dev/mail")
        return Check("mail", "error", f"not sent, but written to {folder}", "set XIMLER_SMTP_URL")
    try:
        found = await Smtp(loaded.smtp_url).check()
    except XimlerError as problem:
        return Check("mail", "error", problem.message, "correct XIMLER_SMTP_URL, or the mail server")
    return Check("mail", "ok", found)


def _public_url(loaded: Settings) -> Check:
    parts = urlsplit(loaded.base_url)
    local = is_loopback(parts.hostname)
    if not loaded.development and (loaded.public_url is None or local):
        detail = f"links in e-mails lead to {loaded.base_url}"
        return Check("public URL", "error", detail, "set XIMLER_PUBLIC_URL to the address that browsers use")
    if not local and parts.scheme == "http":
        remedy = "serve HTTPS with a proxy in front, and set XIMLER_PUBLIC_URL=https://…"
        return Check("public URL", "warning", f"{loaded.base_url} is not encrypted", remedy)
    return Check("public URL", "ok", loaded.base_url)


def _app_url(loaded: Settings) -> Check:
    if loaded.app_url is not None:
        return Check("app URL", "ok", loaded.app_url)
    if loaded.development:
        return Check("app URL", "ok", "none: pages and e-mails lead to Ximler itself")
    remedy = "set XIMLER_APP_URL to the address of your application"
    return Check("app URL", "warning", "pages and e-mails lead to Ximler itself", remedy)


def _server(loaded: Settings) -> Check:
    """Whether Ximler answers on the configured port. Not running is no fault."""
    where = f"{loaded.host}:{loaded.port}"
    connection = http.client.HTTPConnection(loaded.own_host, loaded.port, timeout=3)
    try:
        connection.request("GET", "/readyz")
        answer = connection.getresponse()
        found = msgspec.json.decode(answer.read(100_000))
        status, database = found["status"], found["database"]
    except OSError:
        return Check("server", "ok", f"nothing listens on {where}: 'ximler up' starts it")
    except (http.client.HTTPException, msgspec.DecodeError, KeyError, TypeError):
        remedy = "choose another port with XIMLER_PORT, or end that program"
        return Check("server", "error", f"another program listens on {where}", remedy)
    finally:
        connection.close()
    if status == "ok":
        return Check("server", "ok", f"ready on {where}")
    failing = ", ".join(found.get("failing", [])) or f"its database is {database}"
    return Check("server", "warning", f"running on {where}, but {status}: {failing}", "see its log")


def mongodb_hosts(uri: str) -> list[str]:
    """The names of the servers in a MongoDB URI, without ports."""
    servers = uri.partition("://")[2].partition("?")[0].rpartition("@")[2].partition("/")[0]
    return [server.rpartition(":")[0].strip("[]") or server for server in servers.split(",")]
