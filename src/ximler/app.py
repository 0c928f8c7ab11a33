"""The ASGI application: every interface, on one database."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, MutableMapping
from contextlib import asynccontextmanager
from typing import Any

import structlog
from litestar import Litestar, asgi
from litestar.config.cors import CORSConfig
from litestar.types import Receive, Scope, Send

from ximler.accounts import idempotency, origins
from ximler.accounts.sessions import SessionExpired
from ximler.audit import refusals
from ximler.audit.actions import Action
from ximler.billing.plans import PlanMemory
from ximler.billing.rails import rail
from ximler.core import extensions
from ximler.core.errors import Unavailable
from ximler.core.in_flight import InFlight
from ximler.core.logs import printable
from ximler.core.settings import Settings, SettingsError
from ximler.core.settings_values import pattern_of
from ximler.core.streams import Streams
from ximler.database import connect
from ximler.database.changes import Feed
from ximler.database.monitoring import round_trips
from ximler.database.topics import Topics
from ximler.graphql import (
    accounts,
    apikeys,
    assets,
    audit,
    billing,
    billing_operators,
    metering,
    notifications,
    operators,
    projects,
    reports,
    sharing,
)
from ximler.graphql.context import OPEN, Context, permit
from ximler.graphql.engine import Engine, GraphQLApp, Limits, Prepared, Schema, build, read_trusted, refusal
from ximler.http import assets_tus, docs, mailbox, routes
from ximler.http.authentication import Authentication, log_caller
from ximler.http.bodies import BodyRequest
from ximler.http.idempotency import REPLAYED
from ximler.http.metered import BY_REQUEST, Metered, charge
from ximler.http.problems import HANDLERS
from ximler.http.requests import Requests, TrustedProxies
from ximler.metering.quota.meter import Meter
from ximler.projects.live import Live
from ximler.projects.patches import Saver
from ximler.runtime import Part, Runtime, Shutdown, Stage
from ximler.worker import background_parts, equip

__all__ = ["create", "schema"]

_log = structlog.get_logger("ximler")

_MB = 1_000_000
_ANONYMOUS_BODY = _MB
_INCLUDED_FIELDS = 10  # root fields of one call; each further one costs a call
_NAMED_FIELDS = 3  # of an operation without a name
# The longest password needs 12 kB in a form.
# Parsing 20 MB of form fields blocks the event loop for most of a minute.
_FORM_BODY = 16_384


def schema() -> Schema:
    """The GraphQL schema of every domain and extension."""
    domains = [
        accounts,
        apikeys,
        billing,
        metering,
        projects,
        assets,
        sharing,
        notifications,
        audit,
        operators,
        billing_operators,
        reports,
    ]
    return build([*domains, *extensions.modules("graphql")], guard=permit)


def create(settings: Settings, *, uri: str, shutdown: Shutdown | None = None) -> Requests:
    """The application, for one process. It connects to the database at `uri` when the server starts it.

    When `shutdown` is requested, background work stops; parts that requests depend on stop when the server
    has drained. Raises SettingsError for unusable settings, before anything is served.
    """
    origins.check(settings)
    tools_on = equip(settings, background=settings.worker)
    keyring = tools_on.keywords["keyring"]
    limits = Limits(
        depth=settings.graphql_max_depth,
        cost=settings.graphql_max_cost,
        seconds=settings.graphql_timeout_s,
        slow_seconds=settings.graphql_slow_ms / 1000,
    )
    # Closed by default in production: the schema lists operations for operators.
    asked = settings.graphql_introspection
    engine = Engine(
        schema(), limits=limits, introspection=settings.development if asked is None else asked, trips=round_trips
    )
    if not settings.smtp_url and not settings.development:
        _log.warning("e-mails go nowhere", remedy="set XIMLER_SMTP_URL", folder=str(settings.data_path / "mail"))
    proxies = TrustedProxies(settings.trusted_proxies)
    in_flight = InFlight(settings.in_flight_mb * _MB)

    resources: dict[str, Any] = {}  # for every `Context`: a look-up in `app.state` costs a microsecond

    @asynccontextmanager
    async def lifespan(app: Litestar) -> AsyncIterator[None]:
        database = await connect(uri, settings=settings)
        app.state.database = database
        app.state.keyring = keyring
        app.state.metrics_token = settings.metrics_token
        app.state.mailbox = mailbox.folder_of(settings)
        if settings.stripe_key is not None:
            rail(database, settings)  # imports Stripe's library and opens its client: half a second, before requests
        feed = app.state.feed = Feed(database)
        app.state.plans = PlanMemory(database, feed)
        authentication = app.state.authentication = Authentication(database, keyring, settings, feed)
        meter = app.state.meter = Meter(database, thresholds=settings.usage_alerts, feed=feed)
        saver = app.state.saver = Saver(database)
        app.state.large_bodies = asyncio.Semaphore(2)
        streams = app.state.streams = Streams()
        app.state.live = Live(database, feed, saver.recent, streams, in_flight)
        app.state.topics = Topics(feed, streams)
        parts = serving_parts(feed, authentication, meter, saver, streams)
        app.state.shared_bursts = app.state.results = None
        if settings.valkey_url is not None:
            from ximler.database.results import Results
            from ximler.database.valkey import Valkey
            from ximler.metering.quota.shared_bursts import SharedBursts

            valkey = Valkey(settings.valkey_url, prefix=f"ximler:{database.name}")
            shared = app.state.shared_bursts = SharedBursts(valkey, limits=metered.limits, workers=settings.workers)
            results = app.state.results = Results(valkey, feed, reports.KINDS, secret=keyring.digest("results", ""))

            async def close() -> None:
                await results.close()
                await valkey.close()

            parts.append(Part("bursts", shared.run, close=close, stage=Stage.SERVE))
        if settings.worker:
            parts += background_parts(tools_on(database=database, feed=feed))
        resources.update(database=database, plans=app.state.plans, results=app.state.results)
        runtime = app.state.runtime = Runtime(
            parts, database=database, shutdown=shutdown or Shutdown(settings.drain_seconds)
        )
        runtime.start()
        try:
            yield
        finally:
            await runtime.close()
            keyring.close()
            await database.close()

    async def context(scope: MutableMapping[str, Any]) -> Context:
        authentication: Authentication = app.state.authentication
        ended = None
        try:
            caller = await authentication.identify(scope)
        except SessionExpired as error:  # `admit` raises it, except for fields that are open to everybody
            caller, ended = authentication.anonymous(scope), error
        log_caller(scope, caller)
        return Context(
            **resources,
            settings=settings,
            keyring=keyring,
            actor=caller.actor,
            user=caller.user,
            ended=ended,
            cookies=authentication.cookies if caller.by_cookie else None,
        )

    async def once(ctx: Context, key: str, request: bytes, work: Any) -> Any:
        async def answer() -> idempotency.Answer:
            (status, body, headers), final = await work()
            return idempotency.Answer(status, body, headers, final)

        given, again = await idempotency.once(
            ctx.database, ctx.keyring, ctx.actor, key=key, request=request, work=answer
        )
        return given.status, given.body, [*given.headers, REPLAYED] if again else given.headers

    async def answered(scope: MutableMapping[str, Any], key: str, request: bytes) -> Any:
        token = app.state.authentication.session_token(scope)
        given = token and await idempotency.answered(app.state.database, keyring, token, key=key, request=request)
        return (given.status, given.body, [*given.headers, REPLAYED]) if given else None

    def admit(scope: MutableMapping[str, Any], ctx: Context, prepared: Prepared) -> Awaitable[None] | None:
        fields = prepared.plan.root.fields
        if ctx.ended is not None and not all(field.name in OPEN for field in fields):
            raise ctx.ended
        name = prepared.operation.name or ",".join(field.name for field in fields[:_NAMED_FIELDS])
        scope["state"]["log"]["operation"] = printable(name)
        if prepared.operation.mutation:
            # A request may contain several mutations.
            changes = sum(field.name not in accounts.UNLIMITED for field in fields)
            app.state.authentication.limit_changes(ctx.actor, changes)
            if fields and all(field.name in metering.FREE for field in fields):
                return None
        return charge(scope, 1 + max(0, len(fields) - _INCLUDED_FIELDS))

    async def refused(ctx: Context, code: str) -> None:
        who = ctx.actor.user_id
        with contextlib.suppress(Unavailable):  # the response does not depend on the audit entry
            await refusals.count(
                ctx.database,
                ctx.actor,
                Action.REQUEST_REFUSED,
                resource="users",
                resource_id=who,
                subject=str(ctx.actor.api_key_id or who),
                reason=code,
            )

    body_limit = settings.max_body_mb * _MB
    serve_graphql = GraphQLApp(
        engine,
        context,
        body_limit=body_limit,
        anonymous_body_limit=min(body_limit, _ANONYMOUS_BODY),
        once=once,
        answered=answered,
        admit=admit,
        refused=refused,
        is_known=lambda ctx: ctx.actor.user_id is not None,
        trusted=_trusted(settings),
        follow=lambda ctx, topic, key, after: app.state.topics.follow(ctx.actor, topic, key, after),
        may_trace=lambda ctx: ctx.actor.kind == "operator",
    )

    @asgi("/graphql", copy_scope=False, opt={"api_calls": BY_REQUEST})
    async def graphql(scope: Scope, receive: Receive, send: Send) -> None:
        if scope.get("method") == "GET" and not scope["query_string"] and _is_browser(scope):
            leave = {"type": "http.response.start", "status": 303, "headers": [(b"location", b"/#graphql")]}
            await send(leave)  # type: ignore[arg-type]  # a dictionary of this shape
            await send({"type": "http.response.body", "body": b"", "more_body": False})
            return
        await serve_graphql(scope, receive, send)  # type: ignore[arg-type]  # the same protocol, typed by two libraries

    app = Litestar(
        route_handlers=[
            graphql,
            *routes(),
        ],
        lifespan=[lifespan],
        request_class=BodyRequest,
        exception_handlers=HANDLERS,
        openapi_config=docs.openapi(),
        cors_config=_cors(settings),
        request_max_body_size=_FORM_BODY,  # of every route but /graphql, which has limits of its own
        logging_config=None,
        debug=False,
    )
    metered = Metered(app, settings, {"/graphql": refusal}, {"/graphql": graphql})
    return Requests(metered, proxies, in_flight, https=settings.base_url.startswith("https:"))


def serving_parts(
    feed: Feed, authentication: Authentication, meter: Meter, saver: Saver, streams: Streams
) -> list[Part]:
    """The parts of a process that answers requests."""
    return [
        Part("feed", feed.run, stage=Stage.FEED),
        *authentication.parts,
        Part("meter", meter.run, close=meter.close, stage=Stage.SERVE),
        Part("streams", streams.run),
        Part("projects.saver", saver.run, close=saver.close, stage=Stage.SERVE),
    ]


def _is_browser(scope: Scope) -> bool:
    """Whether a person opened the address, who wants a page."""
    return any(name == b"accept" and b"text/html" in value for name, value in scope["headers"])


def _trusted(settings: Settings) -> dict[str, str] | None:
    if settings.graphql_trusted is None:
        return None
    try:
        return read_trusted(settings.graphql_trusted)
    except (OSError, ValueError) as error:
        raise SettingsError(f"XIMLER_GRAPHQL_TRUSTED: {settings.graphql_trusted} cannot be read: {error}") from error


def _cors(settings: Settings) -> CORSConfig | None:
    if not settings.cors_origins:
        return None
    return CORSConfig(
        allow_origins=["*"] if "*" in settings.cors_origins else [],
        allow_origin_regex=pattern_of(settings.cors_origins),
        allow_methods=["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"],
        allow_headers=[
            "Authorization",
            "Content-Type",
            "Idempotency-Key",
            "If-Match",
            "If-None-Match",
            "Last-Event-ID",
            "X-Request-Id",
            *assets_tus.HEADERS,
        ],
        expose_headers=[
            *assets_tus.ANSWERED,
            "Canvas-Revision",
            "ETag",
            "Idempotency-Replayed",
            "RateLimit",
            "RateLimit-Policy",
            "Retry-After",
            "X-Request-Id",
        ],
        max_age=600,
    )
