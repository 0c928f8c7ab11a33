"""The connection: one pooled client per process and event loop, and the `Database` passed to all code.

The specification's settings are the defaults (pool 10, server selection 5 s, socket 45 s). Stable API version
1, not strict: strict rejects the text index, `$text` and `distinct`. Reads and writes are retried once by the
driver. `w` is not set in the URI: the server's default is majority, and a client-wide `w` is an error inside
a transaction.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import parse_qs

from bson import DatetimeConversion
from pymongo import AsyncMongoClient, ReadPreference
from pymongo.errors import (
    ConfigurationError,
    InvalidURI,
    OperationFailure,
    PyMongoError,
)
from pymongo.server_api import ServerApi
from pymongo.server_type import SERVER_TYPE
from pymongo.topology_description import TopologyDescription
from pymongo.write_concern import WriteConcern

from ximler import __version__
from ximler.core.business import Business
from ximler.core.clock import Clock
from ximler.core.errors import Unavailable
from ximler.core.settings import Settings, SettingsError
from ximler.core.stopping import end
from ximler.database import wire
from ximler.database.collection import TypedCollection
from ximler.database.failures import DatabaseUnavailable, reason, redacted, translated
from ximler.database.monitoring import ConnectionState, listeners
from ximler.schema.api_key import API_KEYS, ApiKey
from ximler.schema.audit_log import AUDIT_LOGS, AuditLog
from ximler.schema.coupon import COUPONS, Coupon
from ximler.schema.document import Collection, Document
from ximler.schema.notification import NOTIFICATIONS, Notification
from ximler.schema.payment import PAYMENTS, Payment
from ximler.schema.plan import PLANS, Plan
from ximler.schema.project import PROJECTS, Project
from ximler.schema.subscription import SUBSCRIPTIONS, Subscription
from ximler.schema.usage import USAGE, Usage
from ximler.schema.user import USERS, User

if TYPE_CHECKING:
    from pymongo.asynchronous.client_session import AsyncClientSession
    from pymongo.asynchronous.database import AsyncDatabase

    from ximler.database.changes import Feed

__all__ = ["Database", "StandaloneServer", "connect"]

_CLOSE_S = 1.0

D = TypeVar("D", bound=Document)
T = TypeVar("T")
A = TypeVar("A")


class StandaloneServer(Unavailable):
    """Transactions and change streams need a replica set."""

    code = "STANDALONE_SERVER"


_commits: ContextVar[list[bool] | None] = ContextVar("commits", default=None)


@contextmanager
def commits() -> Iterator[list[bool]]:
    """Record transactions that this task and those it starts commit inside the block,
    or may have committed."""
    recorded: list[bool] = []
    token = _commits.set(recorded)
    try:
        yield recorded
    finally:
        _commits.reset(token)


def _record_commit() -> None:
    recorded = _commits.get()
    if recorded is not None:
        recorded.append(True)


class Database:
    """Typed access to every collection. Inside `transaction` the body is given another one, bound to the
    session.
    """

    def __init__(
        self,
        client: AsyncMongoClient[dict[str, Any]],
        name: str,
        *,
        clock: Clock,
        state: ConnectionState,
        session: "AsyncClientSession | None" = None,
        entry_keys: tuple[bytes, ...] = (),
        audit_uri: str | None = None,
        business: Business | None = None,
    ) -> None:
        self.client = client
        self.name = name
        self.clock = clock
        self.state = state
        self.session = session
        self.entry_keys = entry_keys  # keys that mark audit entries as ours
        self.audit_uri = audit_uri  # connection that may change and remove them, if this one may not
        self.business = business or Business()
        self.raw: AsyncDatabase[dict[str, Any]] = client[name]
        self.feed: Feed | None = None
        self._to_forget: list[tuple[str, Any]] = []
        self._collections: dict[str, TypedCollection[Any]] = {}

    def __getitem__(self, spec: Collection[D]) -> TypedCollection[D]:
        found = self._collections.get(spec.name)
        if found is None:
            found = TypedCollection(spec, self.raw[spec.name], self.clock, self.session, self.forget)
            self._collections[spec.name] = found
        return found

    @cached_property
    def users(self) -> TypedCollection[User]:
        return self[USERS]

    @cached_property
    def plans(self) -> TypedCollection[Plan]:
        return self[PLANS]

    @cached_property
    def subscriptions(self) -> TypedCollection[Subscription]:
        return self[SUBSCRIPTIONS]

    @cached_property
    def payments(self) -> TypedCollection[Payment]:
        return self[PAYMENTS]

    @cached_property
    def usage(self) -> TypedCollection[Usage]:
        return self[USAGE]

    @cached_property
    def projects(self) -> TypedCollection[Project]:
        return self[PROJECTS]

    @cached_property
    def api_keys(self) -> TypedCollection[ApiKey]:
        return self[API_KEYS]

    @cached_property
    def notifications(self) -> TypedCollection[Notification]:
        return self[NOTIFICATIONS]

    @cached_property
    def coupons(self) -> TypedCollection[Coupon]:
        return self[COUPONS]

    @cached_property
    def audit_logs(self) -> TypedCollection[AuditLog]:
        return self[AUDIT_LOGS]

    @property
    def outside(self) -> "Database":
        """The same database outside this transaction, for reading committed data."""
        outside = self._bound(None)
        outside.feed = self.feed
        return outside

    def forget(self, collection: str, name: Any) -> None:
        """Evict this process's cache entries that depend on a document: now, or at the end of the
        transaction.

        The change feed does the same in all processes within milliseconds; this makes it take effect with the
        next request. Typed writes to one document, by its `_id`, do it implicitly.
        """
        if self.session is not None:
            self._to_forget.append((collection, name))
        elif self.feed is not None:
            self.feed.forget(collection, name)

    async def transaction(self, body: Callable[["Database"], Awaitable[T]]) -> T:
        """Run `body` in a transaction, committed with majority; an exception aborts it.

        `body` may run more than once (the driver repeats it on a write conflict or a lost primary), so it
        must have no effect outside the database. Inside another transaction it joins that one.
        """
        if self.session is not None:
            return await body(self)
        bound = self
        committing = False

        async def run(_: object) -> T:
            nonlocal committing
            committing = False
            result = await body(bound)
            committing = True
            return result

        try:
            async with self.client.start_session() as session:
                bound = self._bound(session)
                result = await session.with_transaction(
                    run, write_concern=WriteConcern("majority"), read_preference=ReadPreference.PRIMARY
                )
            _record_commit()
            return result
        except asyncio.CancelledError:
            if committing:  # the commit may take effect all the same
                _record_commit()
            raise
        except PyMongoError as error:
            if error.has_error_label("UnknownTransactionCommitResult"):
                _record_commit()
            if error.has_error_label("TransientTransactionError"):
                raise DatabaseUnavailable(
                    "The database could not finish the transaction: try again in a moment"
                ) from error
            final = translated(error, self.name)
            if final is error:
                raise
            raise final from error
        finally:
            # Also if it failed: the result of a commit is unknown when its response is lost.
            for collection, name in bound._to_forget:  # noqa: SLF001 (another instance of this class)
                self.forget(collection, name)

    async def together(self, perform: "Callable[[Database, list[A]], Awaitable[Sequence[T]]]", argument: A) -> T:
        """The result of `perform` for the argument.
        Steps that run `in_step` call it once, with all their arguments."""
        return (await perform(self, [argument]))[0]

    def _bound(self, session: "AsyncClientSession | None") -> "Database":
        return Database(
            self.client,
            self.name,
            clock=self.clock,
            state=self.state,
            session=session,
            entry_keys=self.entry_keys,
            audit_uri=self.audit_uri,
            business=self.business,
        )

    async def ping(self) -> None:
        """Raises DatabaseUnavailable unless the primary answers."""
        try:
            await self.client.admin.command("ping")
        except PyMongoError as error:
            raise DatabaseUnavailable(f"The database does not answer: {reason(error)}") from error

    async def close(self) -> None:
        """Close the client. It ends its sessions and cursors on the server, which may take a second: the
        server drops those of a client that is gone.
        """
        self.state.closing = True
        closing = asyncio.ensure_future(self.client.close())
        await asyncio.wait([closing], timeout=_CLOSE_S)
        if not await end([closing], patience_s=_CLOSE_S) and not closing.cancelled():
            closing.result()


async def connect(
    uri: str, *, settings: Settings | None = None, name: str | None = None, quiet: bool = False
) -> Database:
    """Connect and check that the server can do what Ximler needs.

    Raises SettingsError for an invalid URI, DatabaseUnavailable without an answer, StandaloneServer without a
    replica set. The message never shows the password. `quiet`: a short connection, which is not logged.
    """
    settings = settings or Settings(mongodb_uri=uri)
    name = name or settings.database_name
    _check(uri, name)
    clock, state = Clock(), ConnectionState(quiet=quiet)
    try:
        client: AsyncMongoClient[dict[str, Any]] = AsyncMongoClient(
            uri,
            appname=f"ximler/{__version__}",
            **_options(uri, settings),
            **wire.options(),
            server_api=ServerApi("1"),
            event_listeners=listeners(state, clock),
            tz_aware=False,
            datetime_conversion=DatetimeConversion.DATETIME_CLAMP,  # JavaScript's years reach 275760
            unicode_decode_error_handler="replace",  # text cut inside a character must not fail a list
        )
    except (InvalidURI, ConfigurationError, ValueError) as error:
        raise SettingsError(
            f"MONGODB_URI is not usable: {reason(error)}", fields={"mongodb_uri": "is not a usable MongoDB URI"}
        ) from None
    try:
        hello = await client.admin.command("hello")
    except OperationFailure as error:
        await _discard(client, state)
        if error.code in (18, 13):
            raise DatabaseUnavailable(
                f"{redacted(uri)} does not accept this user and password: correct MONGODB_URI"
            ) from error
        raise DatabaseUnavailable(f"{redacted(uri)} refused: {reason(error)}") from error
    except PyMongoError as error:
        found = client.topology_description
        await _discard(client, state)
        raise _not_reached(uri, error, found) from error
    if "setName" not in hello and hello.get("msg") != "isdbgrid":
        await _discard(client, state)
        raise StandaloneServer(
            f"The MongoDB at {redacted(uri)} is a standalone server; Ximler needs a replica set (one member is enough). Start "
            "mongod with --replSet rs0, then run rs.initiate() once in mongosh; or unset MONGODB_URI to use the embedded one."
        )
    state.changed(connected=True)  # the driver's own event comes up to a second later
    clock.observe(hello["localTime"].replace(tzinfo=clock.now().tzinfo))
    return Database(
        client,
        name,
        clock=clock,
        state=state,
        entry_keys=settings.entry_keys,
        audit_uri=settings.audit_mongodb_uri,
        business=settings.business,
    )


def _not_reached(uri: str, error: PyMongoError, found: TopologyDescription) -> Unavailable:
    """The remedy: it differs between no answer and an answer from a server that does not match the URI."""
    servers = found.server_descriptions()
    if any(server.server_type == SERVER_TYPE.RSGhost for server in servers.values()):
        return StandaloneServer(
            f"The MongoDB at {redacted(uri)} belongs to a replica set that is not initiated: run rs.initiate() once in "
            "mongosh."
        )
    if found.replica_set_name and not servers:  # every server that answered was rejected
        return DatabaseUnavailable(
            f"The MongoDB at {redacted(uri)} is not a member of the replica set that MONGODB_URI names ({reason(error)}): "
            "correct `replicaSet` in it; or, for a standalone server, start mongod with --replSet and that name, then run "
            "rs.initiate() once in mongosh."
        )
    return DatabaseUnavailable(
        f"No MongoDB answers at {redacted(uri)} ({reason(error)}): start it, or correct MONGODB_URI"
    )


async def _discard(client: AsyncMongoClient[dict[str, Any]], state: ConnectionState) -> None:
    state.closing = True
    await client.close()


def _check(uri: str, name: str) -> None:
    """Reject a URI or name that the driver misreads or accepts until first use. Raises SettingsError."""
    scheme, _, rest = uri.partition("://")
    problem = None
    if scheme not in ("mongodb", "mongodb+srv"):
        problem = "it must begin with mongodb:// or mongodb+srv://"
    elif "@" in rest.partition("/")[2].partition("?")[0]:
        problem = "a '/' in user or password must be written %2F"
    if problem:
        raise SettingsError(
            f"MONGODB_URI is not usable: {problem}", fields={"mongodb_uri": "is not a usable MongoDB URI"}
        )
    if re.search(r'[/\\. "$*<>:|?\0]', name) or not 0 < len(name.encode()) < 64:
        raise SettingsError(
            f"XIMLER_DATABASE: {name!r} cannot be a database's name (1 to 63 bytes, without spaces and /\\.\"$*<>:|?)",
            fields={"database": "cannot be a database's name"},
        )


def _options(uri: str, settings: Settings) -> dict[str, Any]:
    """The options that the URI does not set."""
    said = {name.lower() for name in parse_qs(uri.partition("?")[2], keep_blank_values=True)}
    ours = {
        "maxPoolSize": settings.pool_size,
        "serverSelectionTimeoutMS": settings.server_selection_timeout_ms,
        "socketTimeoutMS": settings.socket_timeout_ms,
        "retryReads": True,
        "retryWrites": True,
    }
    return {name: value for name, value in ours.items() if name.lower() not in said}
