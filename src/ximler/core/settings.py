"""Settings: environment variables, over an optional TOML file, over defaults, parsed once into one frozen
Struct.

Every field is one variable: `XIMLER_` and its name in capitals (but `MONGODB_URI` and `VALKEY_URL`). The type
determines parsing: a tuple is a comma-separated list, `Secret` is never shown, `Literal` is a choice. The
README's table is generated from this module.
"""

import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, Self, get_args, get_origin
from urllib.parse import unquote, urlsplit

import msgspec
from msgspec import Meta

from ximler.core.business import Business
from ximler.core.settings_files import MIN_SECRET, SettingsError, generated_secret, read_toml
from ximler.core.settings_values import is_mailbox, origin_of

__all__ = ["Settings", "SettingsError", "load", "sources", "unknown_variables"]

_NAMES = {"mongodb_uri": "MONGODB_URI", "valkey_url": "VALKEY_URL"}
_OTHER_VARIABLES = ("XIMLER_CONFIG", "XIMLER_DEBUG")

_FORMS = {
    "host": (r"[\w.:-]+(%\w+)?", "Expected an address or a name, such as 127.0.0.1"),
    "database": (r"[^/\\. \"$*<>:|?\0]{1,63}", "Expected a name that MongoDB allows, such as ximler"),
    "breach_lookup_url": (r"https?://[^/\s]+/\S*", "Expected a URL, such as https://api.pwnedpasswords.com/range/"),
    "seller_country": ("[A-Z]{2}", "Expected two letters of ISO 3166, such as DE"),
}

# Never shown in logs, tracebacks and errors; URIs carry passwords.
Secret = Annotated[str, Meta(extra={"secret": True})]


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    # Database
    mongodb_uri: Annotated[
        Secret | None,
        Meta(description="Your own MongoDB (`mongodb://` or `mongodb+srv://`). Unset: Ximler starts an embedded one."),
    ] = None
    database: Annotated[
        str | None, Meta(description="Database name. Unset: the one in `MONGODB_URI`'s path, else `ximler`.")
    ] = None
    pool_size: Annotated[int, Meta(ge=1, description="Maximum database connections per process.")] = 10
    server_selection_timeout_ms: Annotated[
        int, Meta(ge=1, description="How long an operation waits for a usable server.")
    ] = 5000
    socket_timeout_ms: Annotated[int, Meta(ge=1, description="Timeout of one answer from the server.")] = 45000

    # Embedded server
    data_dir: Annotated[
        Path | None,
        Meta(description="Where the embedded server and generated secrets live. Unset: the user data folder."),
    ] = None
    mongod: Annotated[
        str | None,
        Meta(description="The `mongod` to run. Unset: the first on PATH, else the one in `ximler[embedded]`."),
    ] = None
    mongod_cache_mb: Annotated[int, Meta(ge=256, description="Cache of the embedded server (WiredTiger), in MB.")] = 256

    # HTTP
    host: Annotated[str, Meta(description="Address to listen on.")] = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535, description="Port to listen on; 0 takes a free one.")] = 8000
    workers: Annotated[int, Meta(ge=1, description="Number of processes that answer requests.")] = 1
    max_connections: Annotated[
        int,
        Meta(
            ge=10,
            description="Maximum connections per process. Slow and idle ones are closed for new ones, else it answers 503.",
        ),
    ] = 1000
    max_connections_per_address: Annotated[
        int,
        Meta(
            ge=1,
            description="Maximum connections of one address per process; trusted proxies and this machine are excepted.",
        ),
    ] = 200
    keep_alive_s: Annotated[
        int,
        Meta(
            ge=1,
            le=3600,
            description="Seconds that an idle connection is kept open. Longer than the proxy's in front, which is often 60.",
        ),
    ] = 75
    drain_seconds: Annotated[
        int, Meta(ge=0, le=600, description="How long running requests may finish after SIGTERM or Ctrl-C.")
    ] = 10
    public_url: Annotated[
        Annotated[str, Meta(pattern=r"^(?i:https?)://[^/?#\s]+[^?#\s]*$")] | None,
        Meta(description="Public URL of Ximler, used for links in e-mails. Unset: host and port."),
    ] = None
    app_url: Annotated[
        Annotated[str, Meta(pattern=r"^(?i:https?)://[^/?#\s]+[^\s]*$")] | None,
        Meta(description="Your application's address: pages and e-mails lead people there."),
    ] = None
    trusted_proxies: Annotated[
        tuple[str, ...],
        Meta(description="Addresses or networks of proxies whose `X-Forwarded-For`, or else `Forwarded`, is trusted."),
    ] = ()
    cors_origins: Annotated[
        tuple[str, ...],
        Meta(
            description="Origins whose pages may call the API from a browser, and to which a payment may return. "
            "`https://*.example.com` stands for every subdomain; `*` lets any page call the API."
        ),
    ] = ()
    metrics_token: Annotated[
        Annotated[Secret, Meta(min_length=16)] | None,
        Meta(description="Bearer token of `GET /metrics`, 16 characters or more. Unset: public in development only."),
    ] = None
    in_flight_mb: Annotated[
        int,
        Meta(
            ge=64,
            description="Bytes that bodies being received, exports being sent and unread answers may hold per process, in MB; "
            "half of them for callers without an account. Slow readers are disconnected first, then requests get 503.",
        ),
    ] = 256
    max_body_mb: Annotated[int, Meta(ge=1, description="Largest request body, in MB of 10⁶ bytes.")] = 20

    worker: Annotated[bool, Meta(description="Whether `ximler up` also runs jobs; otherwise run `ximler worker`.")] = (
        True
    )

    # GraphQL
    graphql_introspection: Annotated[
        bool | None, Meta(description="Whether introspection is allowed. Unset: in development only.")
    ] = None
    graphql_max_depth: Annotated[int, Meta(ge=1, description="Maximum depth of a selection.")] = 12
    graphql_max_cost: Annotated[
        int, Meta(ge=10000, description="Maximum number of fields a query may resolve, lists included.")
    ] = 20000
    graphql_timeout_s: Annotated[int, Meta(ge=1, description="Seconds after which an operation is ended.")] = 30
    graphql_trusted: Annotated[
        Path | None, Meta(description="File of the only queries that are executed: an Apollo or Relay manifest.")
    ] = None
    graphql_slow_ms: Annotated[
        int, Meta(ge=1, description="Milliseconds from which an operation is logged as slow.")
    ] = 1000

    # Metering
    api_rate: Annotated[
        int,
        Meta(
            ge=1,
            description="Average calls per second of one API key; all keys of a user together may make twice as many.",
        ),
    ] = 50
    api_burst: Annotated[
        int, Meta(ge=1, description="Burst of one API key; all keys of a user together may make twice as many calls.")
    ] = 100
    valkey_url: Annotated[
        Annotated[Secret, Meta(pattern=r"^(redis|rediss|valkey|valkeys|unix)://\S+$")] | None,
        Meta(
            description="Valkey or Redis, `redis://host:6379`, in which all processes share the burst limits of API keys, "
            "and the results of reports. Unset: each process has its own limits."
        ),
    ] = None
    address_rate: Annotated[
        int,
        Meta(
            ge=1,
            description="Average requests per second of one address (not this machine) without an API key, and of one "
            "session; all sessions of a user together may make twice as many.",
        ),
    ] = 200
    address_burst: Annotated[
        int,
        Meta(
            ge=1,
            description="Requests that one address may make at once without an API key, and one session; all sessions of a "
            "user together may make twice as many.",
        ),
    ] = 5_000
    session_rate: Annotated[
        int, Meta(ge=1, description="Average changes per second that all sessions of a user together may make.")
    ] = 5
    session_burst: Annotated[
        int, Meta(ge=1, description="Changes that all sessions of a user together may make at once.")
    ] = 300
    session_daily: Annotated[
        int,
        Meta(
            ge=1,
            description="Average changes per day of all sessions of a user together; bounds the user's audit entries.",
        ),
    ] = 20_000

    # Accounts
    environment: Annotated[
        Literal["development", "production"] | None,
        Meta(description="`development` logs confirmation links. Unset: `production` when `MONGODB_URI` is set."),
    ] = None
    geoip_file: Annotated[
        Path | None,
        Meta(
            description="GeoIP file with cities, in MaxMind's format (`GeoLite2-City.mmdb`); needs `ximler[geoip]`. Sessions "
            "then show their city, and a sign-in from a new one is reported."
        ),
    ] = None
    secret_key: Annotated[
        Secret | None,
        Meta(
            description="Key of session tokens, 32 characters or more; generated unless `MONGODB_URI` is set. "
            "Rotate by prepending: `new,old`."
        ),
    ] = None
    audit_key: Annotated[
        Secret | None,
        Meta(
            description="Key that seals the audit log (`ximler audit key --new`); generated unless `MONGODB_URI` is set. "
            "Keep it apart from the database."
        ),
    ] = None
    audit_retention_days: Annotated[
        Annotated[int, Meta(ge=1)] | None,
        Meta(description="Age after which sealed entries of the audit log are removed, daily. Unset: they are kept."),
    ] = None
    audit_mongodb_uri: Annotated[
        Secret | None,
        Meta(
            description="Connection for erasing and pruning the audit log, where the one in `MONGODB_URI` may only append "
            "to it (`ximler db roles`)."
        ),
    ] = None
    smtp_url: Annotated[
        Secret | None,
        Meta(
            description="`smtp://user:password@host:587` or `smtps://…:465`. Unset: e-mails are written to the data folder."
        ),
    ] = None
    mail_from: Annotated[
        str | None,
        Meta(description="Sender of e-mails: `Ximler <hello@example.com>`. Unset: no-reply at the public URL."),
    ] = None
    seller: Annotated[
        str,
        Meta(
            min_length=1,
            max_length=500,
            description="Your name and address on invoices, lines separated by `;`: `Acme Ltd; 1 High Street; London`.",
        ),
    ] = "Ximler"
    seller_country: Annotated[str | None, Meta(description="Your country, two letters of ISO 3166: `DE`. For tax.")] = (
        None
    )
    tax_rates: Annotated[
        tuple[str, ...],
        Meta(description="Percent of tax by the customer's country: `DE=19,AT=20,FR=20`. Countries not listed: none."),
    ] = ()
    tax_inclusive: Annotated[bool, Meta(description="Prices contain the tax; otherwise it is added to them.")] = False
    stripe_key: Annotated[
        Annotated[Secret, Meta(pattern=r"^(sk|rk)_(test|live)_\w+$")] | None,
        Meta(
            description="Secret or restricted API key of Stripe, which then takes the payments. Unset: the sandbox, in "
            "development only. Live keys are rejected in development."
        ),
    ] = None
    stripe_webhook_secrets: Annotated[
        tuple[Annotated[Secret, Meta(min_length=16)], ...],
        Meta(
            description="Signing secrets of the endpoint `/webhooks/stripe`, required with a key. "
            "Rotate by prepending: `new,old`."
        ),
    ] = ()
    stripe_billing: Annotated[
        bool,
        Meta(
            description="Whether Stripe bills new subscriptions to plans with a `stripePriceId`, which Ximler then mirrors, "
            "and not Ximler itself."
        ),
    ] = False
    stripe_api: Annotated[
        str,
        Meta(pattern=r"^https?://[^/?#\s]+$", description="Address of Stripe's API: another one for tests."),
    ] = "https://api.stripe.com"
    operators_need_factor: Annotated[
        bool, Meta(description="Whether operators have their rights only with a second factor.")
    ] = False
    session_days: Annotated[int, Meta(ge=1, le=400, description="Days until an unused session ends.")] = 30
    session_max_days: Annotated[
        int, Meta(ge=1, le=400, description="Days until any session ends, however much it is used.")
    ] = 90
    argon2_memory_kib: Annotated[int, Meta(ge=7168, description="Argon2id memory of one password hash (OWASP).")] = (
        19456
    )
    argon2_time_cost: Annotated[int, Meta(ge=1, description="Argon2id passes.")] = 2
    argon2_threads: Annotated[int, Meta(ge=1, description="Password hashes computed concurrently, per process.")] = 2

    breach_lookup_url: Annotated[
        str | None,
        Meta(
            description="Where passwords are looked up among known breaches: `https://api.pwnedpasswords.com/range/`. "
            "Five digits of a hash are sent, never the password. Unset: no look-up."
        ),
    ] = None

    # Versions of canvases
    canvas_versions: Annotated[
        int,
        Meta(
            ge=0,
            le=1000,
            description="How many versions of a canvas are kept beside pinned and named ones; 0: none are made "
            "automatically.",
        ),
    ] = 50
    canvas_versions_by_plan: Annotated[
        tuple[str, ...],
        Meta(description="The same for customers of a plan: `Pro=200,Enterprise=1000`. Plans not listed: as above."),
    ] = ()
    canvas_version_minutes: Annotated[
        int, Meta(ge=1, le=1440, description="Minutes between automatic versions of a canvas that changes.")
    ] = 10
    canvas_version_revisions: Annotated[
        int, Meta(ge=10, description="Revisions after which a canvas has another automatic version.")
    ] = 1000

    # Assets
    asset_max_mb: Annotated[int, Meta(ge=1, description="Largest file of a project, in MB of 10⁶ bytes.")] = 1000

    # Usage
    usage_alerts: Annotated[
        tuple[Annotated[int, Meta(ge=1, le=1000)], ...],
        Meta(description="Percentages of a limit at which a user is notified, once a period: `80,100`."),
    ] = (80, 100)

    # Logs
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], Meta(description="Lowest severity that is logged.")
    ] = "info"
    log_format: Annotated[
        Literal["json", "console"] | None, Meta(description="Unset: `console` on a terminal, else `json`.")
    ] = None

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        """For logs and tracebacks: the settings that differ from their defaults, without secret values."""
        given = [
            (f.name, getattr(self, f.name)) for f in msgspec.structs.fields(self) if getattr(self, f.name) != f.default
        ]
        return [(name, "…" if is_secret(name) else value) for name, value in given]

    def __repr__(self) -> str:
        return f"Settings({', '.join(f'{name}={value!r}' for name, value in self.__rich_repr__())})"

    @property
    def development(self) -> bool:
        return self.environment == "development" if self.environment else self.mongodb_uri is None

    @property
    def data_path(self) -> Path:
        if self.data_dir is not None:
            return self.data_dir.expanduser().absolute()
        import platformdirs  # here, because only the embedded server needs it

        return Path(platformdirs.user_data_dir("ximler", appauthor=False))

    @property
    def database_name(self) -> str:
        if self.database:
            return self.database
        # By hand: for urlsplit a '#' in the password would start a fragment, and end the path.
        address = (self.mongodb_uri or "").partition("://")[2].partition("?")[0].rpartition("@")[2]
        return unquote(address.partition("/")[2].strip("/")) or "ximler"

    @property
    def own_host(self) -> str:
        """The address at which this machine reaches the server."""
        return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)  # noqa: S104 (compared, not bound)

    @property
    def base_url(self) -> str:
        """The public URL, else the address to listen on, or loopback if it listens on all addresses."""
        host = f"[{self.own_host}]" if ":" in self.own_host else self.own_host
        return (self.public_url or f"http://{host}:{self.port}").rstrip("/")

    @property
    def secret_keys(self) -> tuple[bytes, ...]:
        """Newest first. Raises SettingsError if none is set; `with_secret` generates one for embedded use."""
        keys = tuple(key.encode(errors="surrogateescape") for key in _split(self.secret_key or ""))
        if not keys:
            raise SettingsError(
                "XIMLER_SECRET_KEY is required with MONGODB_URI. Make one with: "
                "python -c 'import secrets; print(secrets.token_urlsafe(32))'",
                fields={"secret_key": "is missing"},
            )
        if any(len(k) < MIN_SECRET for k in keys):
            raise SettingsError(
                f"XIMLER_SECRET_KEY must be {MIN_SECRET} characters or more.", fields={"secret_key": "is too short"}
            )
        return keys

    @property
    def business(self) -> Business:
        rates = {country: Decimal(percent) for country, _, percent in (each.partition("=") for each in self.tax_rates)}
        return Business(seller=self.seller, country=self.seller_country, rates=rates, inclusive=self.tax_inclusive)

    @property
    def versions_by_plan(self) -> dict[str, int]:
        """`canvas_versions_by_plan`, by the plan's name in lower case."""
        pairs = (each.partition("=") for each in self.canvas_versions_by_plan)
        return {name.strip().casefold(): int(most) for name, _, most in pairs}

    def versions_kept(self, plan: str) -> int:
        """How many unnamed, unpinned versions of a canvas a plan's customers keep; 0: none are made."""
        return self.versions_by_plan.get(plan.strip().casefold(), self.canvas_versions)

    @property
    def keeps_versions(self) -> bool:
        """Whether customers of any plan have versions made automatically."""
        return any((self.canvas_versions, *self.versions_by_plan.values()))

    @property
    def entry_keys(self) -> tuple[bytes, ...]:
        """Keys that mark entries of the audit log as ours, newest first; none without a secret key."""
        if self.secret_key is None:
            return ()
        return tuple(hashlib.sha256(b"ximler audit entries" + key).digest() for key in self.secret_keys)

    def with_secret(self) -> Self:
        """These settings with a usable secret key: the given one, or (embedded) one kept in `data_path`.

        Raises SettingsError, also for a key of Stripe that cannot be used.
        """
        if self.stripe_key is not None and self.development and "_live_" in self.stripe_key:
            problem = "a live key takes real money: use a test key in development"
            raise SettingsError(f"XIMLER_STRIPE_KEY: {problem}", fields={"stripe_key": problem})
        if self.stripe_key is not None and not self.stripe_webhook_secrets:
            problem = "required with XIMLER_STRIPE_KEY: the signing secret of the endpoint, whsec_…"
            raise SettingsError(f"XIMLER_STRIPE_WEBHOOK_SECRETS: {problem}", fields={"stripe_webhook_secrets": problem})
        if self.secret_key is None and self.mongodb_uri is None:
            return msgspec.structs.replace(self, secret_key=generated_secret(self.data_path))
        _ = self.secret_keys
        return self


def load(
    environ: Mapping[str, str] | None = None, *, file: Path | None = None, overrides: Mapping[str, object] | None = None
) -> Settings:
    """Settings from TOML (`file` or `XIMLER_CONFIG`), then the environment, then `overrides` that are set.

    Raises SettingsError naming the variable, its value and the expected form.
    """
    given = _given(environ, file, overrides)
    values = {name: value for name, (value, _) in given.items()}
    sources = {name: source for name, (_, source) in given.items()}
    try:
        return _usable(msgspec.convert(values, Settings, strict=False, dec_hook=_decode), sources)
    except msgspec.ValidationError as problem:
        message, _, place = str(problem).partition(" - at `$.")
        name = place.rstrip("`").split("[")[0]
        if not name and (unknown := re.search(r"unknown field `(.*)`", message)):
            name, message = unknown[1], "is not a setting of Ximler"
        elif message.startswith("Invalid enum value"):
            message = f"Expected one of {', '.join(_choices(name))}"
        elif "matching regex" in message:
            message = "Expected a URL, such as https://ximler.example"
            if name == "stripe_key":
                message = "Expected a secret or restricted key of Stripe: sk_test_…, sk_live_…, rk_test_… or rk_live_…"
        shown = sources.get(name, "settings")
        value = "" if name not in Settings.__struct_fields__ or is_secret(name) else f" (got {_shown(values[name])})"
        raise SettingsError(f"{shown}: {message}{value}", fields={name or "settings": message}) from None


def sources(
    environ: Mapping[str, str] | None = None, *, overrides: Mapping[str, object] | None = None
) -> dict[str, str]:
    """The variable, file or option that each non-default setting comes from. Raises SettingsError."""
    return {name: source for name, (_, source) in _given(environ, None, overrides).items()}


def unknown_variables(environ: Mapping[str, str] | None = None) -> dict[str, str | None]:
    """Ignored variables: with our prefix, but not of a setting; each with the known name most like it."""
    known = [*map(variable_name, Settings.__struct_fields__), *_OTHER_VARIABLES]
    environ = os.environ if environ is None else environ
    found = sorted(name for name in environ if name.startswith("XIMLER_") and name not in known)
    if not found:
        return {}
    from difflib import get_close_matches

    return {name: next(iter(get_close_matches(name, known, 1)), None) for name in found}


def _given(
    environ: Mapping[str, str] | None, file: Path | None, overrides: Mapping[str, object] | None
) -> dict[str, tuple[Any, str]]:
    """Value and source of each setting that is given; a later source replaces an earlier one."""
    environ = os.environ if environ is None else environ
    file = file or (Path(environ["XIMLER_CONFIG"]) if environ.get("XIMLER_CONFIG") else None)
    given = {name: (value, f"{file}: {name}") for name, value in (read_toml(file) if file else {}).items()}
    for name in Settings.__struct_fields__:
        variable = variable_name(name)
        text = environ.get(variable)
        if text is not None and text.strip():
            given[name] = (_split(text) if _is_list(name) else text.strip(), variable)
    for name, value in (overrides or {}).items():
        if value is not None:
            given[name] = (value, f"--{name.replace('_', '-')}")
    return given


def _usable(settings: Settings, sources: Mapping[str, str]) -> Settings:
    """Normalised for comparison with browsers' headers. Raises SettingsError for unusable values."""

    def refuse(name: str, value: str, problem: str) -> NoReturn:
        shown = sources.get(name, "settings")
        raise SettingsError(f"{shown}: {problem} (got {_shown(value)})", fields={name: problem})

    public_url, origins = settings.public_url, []
    if public_url is not None:
        public_url = origin_of(public_url)
        if public_url is None:
            problem = "Expected scheme and host only, such as https://ximler.example: paths are not supported"
            refuse("public_url", settings.public_url or "", problem)
        if "*" in public_url or urlsplit(public_url).hostname in ("0.0.0.0", "::"):  # noqa: S104 (refused, not bound)
            problem = "Expected the address that browsers use, such as https://ximler.example"
            refuse("public_url", public_url, problem)
    for given in settings.cors_origins:
        origin = given if given == "*" else origin_of(given)
        if origin is None or (origin != "*" and "*" in re.sub(r"^https?://\*\.(?=.)", "", origin)):
            refuse("cors_origins", given, "Expected origins, such as https://app.example or http://localhost:5173")
        origins.append(origin)
    if settings.mail_from is not None and not is_mailbox(settings.mail_from):
        problem = (
            'Expected one mailbox, such as Ximler <hello@example.com>; a name with a comma needs quotes: "Acme, Inc"'
        )
        refuse("mail_from", settings.mail_from, problem)
    if "session_days" in sources and settings.session_days > settings.session_max_days:
        problem = f"Expected at most {variable_name('session_max_days')}, such as {settings.session_max_days}"
        refuse("session_days", str(settings.session_days), problem)
    for name, (form, problem) in _FORMS.items():
        if (value := getattr(settings, name)) is not None and re.fullmatch(form, value) is None:
            refuse(name, value, problem)
    for given in settings.canvas_versions_by_plan:
        if re.fullmatch(r"[^=]+=(1000|0|[1-9]\d{0,2})", given) is None:
            refuse("canvas_versions_by_plan", given, "Expected a plan's name and 0 to 1000, such as Pro=200")
    for given in settings.tax_rates:
        if re.fullmatch(r"[A-Z]{2}=(100|\d{1,2}(\.\d{1,3})?)", given) is None:
            refuse("tax_rates", given, "Expected a country and a percentage, such as DE=19")
    unused = min(settings.session_days, settings.session_max_days)  # the default may be more
    return msgspec.structs.replace(settings, public_url=public_url, cors_origins=tuple(origins), session_days=unused)


def variable_name(name: str) -> str:
    return _NAMES.get(name, f"XIMLER_{name.upper()}")


def documentation() -> list[tuple[str, str, str]]:
    """(variable, default, meaning) of every setting, in order: the README's table."""
    rows = []
    for field in msgspec.structs.fields(Settings):
        meta = next(part for part in get_args(field.type) if isinstance(part, Meta))
        default = (
            ""
            if field.default in (None, ())
            else ",".join(map(str, field.default))
            if isinstance(field.default, tuple)
            else str(field.default).lower()
            if isinstance(field.default, bool)
            else str(field.default)
        )
        rows.append((variable_name(field.name), default, meta.description or ""))
    return rows


def _annotations(hint: Any) -> Iterator[Any]:
    yield hint
    for part in get_args(hint):
        yield from _annotations(part)


def _is_list(name: str) -> bool:
    return any(get_origin(part) is tuple for part in _annotations(Settings.__annotations__[name]))


def is_secret(name: str) -> bool:
    marks = (part.extra or {} for part in _annotations(Settings.__annotations__[name]) if isinstance(part, Meta))
    return any(mark.get("secret") for mark in marks)


def _choices(name: str) -> list[str]:
    """The words that a setting with a fixed choice accepts."""
    parts = _annotations(Settings.__annotations__[name])
    return [word for part in parts if get_origin(part) is Literal for word in get_args(part)]


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _decode(kind: type, value: object) -> object:
    if kind is Path and isinstance(value, str | Path):
        return Path(value)
    raise TypeError(f"Expected a path, got {type(value).__name__}")


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}…"
