"""`ximler demo`: an installation beside yours, with an account that has a history of ten weeks.

It has a database and a folder of its own, so nothing of yours is touched, and removal leaves nothing: invoice
numbers and the audit log permit no removal from a database in use. The history is made by the domains
themselves, on a clock that is set back and then plays time forward.
"""

import hashlib
import random
import secrets
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from ximler.cli import context
from ximler.core.actor import Actor
from ximler.core.errors import Conflict, Forbidden, Invalid
from ximler.core.settings import Settings

if TYPE_CHECKING:
    from ximler.database import Database
    from ximler.schema.user import User

_FOLDER, _MARK = "demo", "demo.json"
_NAME, _EMAIL = "Ada Lovelace", "ada@example.com"
_CARD = "4242 4242 4242 4242"
_OPERATOR = Actor(kind="operator", via="cli")
_DAY = timedelta(days=1)

# (days ago, name, colours of the shapes on its canvas)
_PROJECTS = (
    (70, "Website", ("royalblue", "white", "black")),
    (45, "Mobile app", ("teal", "orange")),
    (19, "Conference poster", ("crimson", "gold", "navy", "white")),
    (3, "Old sketches", ("grey",)),
)
_BOUGHT, _RENEWED, _UPGRADED = 62, 22, 20  # days ago
_USAGE_DAYS = 30


class Demo(msgspec.Struct, rename="camel"):
    """How to sign in, as it is kept in the demo's folder."""

    email: str
    password: str
    api_key: str
    command: str
    folder: str
    database: str | None = None  # and a digest of MONGODB_URI, where it was not embedded


@click.command()
@click.option("--remove", is_flag=True, help="Remove the demo, its database and its folder.")
@click.option("--force", is_flag=True, help="Also outside of development.")
@click.option("--json", "as_json", is_flag=True, help="Print the account as JSON.")
@context.database_options
def demo(remove: bool, force: bool, as_json: bool, data_dir: Path | None, mongodb_uri: str | None) -> None:
    """Make an installation beside yours with an account to look at.

    It has a plan with renewals and an upgrade, projects with canvases, usage of 30 days, notifications and an
    audit log. It is in the folder `demo` of the data folder, with MONGODB_URI in a database named like yours
    and `_demo`; yours is not touched. Run it again to see how to sign in; --remove leaves no trace.
    """
    loaded = context.load(data_dir=data_dir, mongodb_uri=mongodb_uri)
    if not loaded.development and not force:
        raise Forbidden("This is not a development installation: --force makes a demo all the same")
    theirs = _beside(loaded)
    if remove:
        removed = context.run(_remove(theirs))
        text = "The demo is removed." if removed else "There is no demo to remove."
        context.print_json({"removed": removed}) if as_json else click.echo(text)
        return
    mark = theirs.data_path / _MARK
    if mark.exists():
        made = msgspec.json.decode(mark.read_bytes(), type=Demo)
    else:
        _refuse_foreign(theirs.data_path)
        made = context.run(_make(theirs))
    if as_json:
        context.print_json(made)
        return
    click.echo(
        f"Start the demo with\n\n  {made.command}\n\nand sign in as {made.email} with the password {made.password}\n"
        f"(API key: {made.api_key}).\nRemove it with: ximler demo --remove"
    )


def _beside(loaded: Settings) -> Settings:
    """The demo's settings: no mail is sent and no card charged."""
    return msgspec.structs.replace(
        loaded,
        data_dir=loaded.data_path / _FOLDER,
        database=f"{loaded.database_name}_demo" if loaded.mongodb_uri else loaded.database,
        environment="development",
        smtp_url=None,
        stripe_key=None,
        stripe_billing=False,
        audit_mongodb_uri=None,
    )


def _refuse_foreign(folder: Path) -> None:
    if folder.exists() and not (folder / _MARK).exists() and any(folder.iterdir()):
        raise Conflict(f"{folder} is not empty, and no demo: move it, or use another --data-dir")


async def _remove(theirs: Settings) -> bool:
    folder = theirs.data_path
    mark = folder / _MARK
    if not folder.exists():
        return False
    _refuse_foreign(folder)
    if theirs.mongodb_uri:
        if not mark.exists() or msgspec.json.decode(mark.read_bytes(), type=Demo).database != _place(theirs):
            raise Conflict("The demo was made with another MONGODB_URI or XIMLER_DATABASE: set them as they were then")
        async with context.database(theirs) as database:
            await database.client.drop_database(database.name)
    else:
        from ximler.embedded import server

        if await server.attach(folder):
            raise Conflict(f"The demo's server is running on {folder}: stop it first")
    shutil.rmtree(folder)
    return True


async def _make(theirs: Settings) -> Demo:
    folder = theirs.data_path
    password = "-".join(secrets.token_hex(2) for _ in range(4))
    try:
        folder.mkdir(mode=0o700, parents=True)
        async with _opened(theirs) as database:
            api_key = await _history(database, theirs.with_secret(), password)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    made = Demo(
        email=_EMAIL,
        password=password,
        api_key=api_key,
        command=_command(theirs),
        folder=str(folder),
        database=_place(theirs),
    )
    mark = folder / _MARK
    mark.touch(mode=0o600)
    mark.write_bytes(msgspec.json.format(msgspec.json.encode(made)))
    return made


def _place(theirs: Settings) -> str | None:
    """The database outside, by its name and a digest of the address, which may contain a password."""
    if not theirs.mongodb_uri:
        return None
    return f"{theirs.database_name} {hashlib.sha256(theirs.mongodb_uri.encode()).hexdigest()[:16]}"


def _command(theirs: Settings) -> str:
    up = f"ximler up --port 8001 --data-dir {theirs.data_path}"
    return f"XIMLER_ENVIRONMENT=development XIMLER_DATABASE={theirs.database_name} {up}" if theirs.mongodb_uri else up


@asynccontextmanager
async def _opened(theirs: Settings) -> "AsyncIterator[Database]":
    """The new database. Raises Conflict if there is one of its name, which a demo must not change."""
    async with context.database(theirs) as database:
        if await database.raw.list_collection_names():
            raise Conflict(f"The database {database.name!r} exists already: remove it, or set XIMLER_DATABASE")
        try:
            yield database
        except BaseException:
            await database.client.drop_database(database.name)
            raise


async def _history(database: "Database", settings: Settings, password: str) -> str:
    """Everything that the account did, oldest first; returns the secret of its API key."""
    from ximler import setup
    from ximler.accounts.keyring import Keyring
    from ximler.apikeys import keys
    from ximler.audit.heads import KeptHead
    from ximler.audit.keys import find
    from ximler.audit.sealing import Sealer
    from ximler.billing import changes, checkouts, events
    from ximler.billing.rails import sandbox
    from ximler.billing.run import forward
    from ximler.notifications import inbox
    from ximler.worker import Worker, equip

    rail = sandbox(database, settings)
    tools = equip(settings, background=False)(database=database)
    worker = Worker(tools)
    today = database.clock.now()
    keyring = Keyring(settings)

    async def travel(days_ago: int) -> None:
        """Set the clock to then; work that was due on the way is done at its time."""
        then = today - days_ago * _DAY
        await forward(database, rail, then, meanwhile=worker.run_due)
        database.clock.offset_ms += (then - database.clock.now()) // timedelta(milliseconds=1)

    def actor(user: "User") -> Actor:
        return Actor(
            kind="user",
            via="session",
            user_id=user.id,
            authenticated_at=database.clock.now(),
            address="192.0.2.10",
            user_agent="Mozilla/5.0 (X11; Linux x86_64) Firefox/140.0",
        )

    try:
        database.clock.offset_ms = -75 * _DAY // timedelta(milliseconds=1)
        await setup.initialise(database)
        user = await _account(database, keyring, password)
        waiting = list(_PROJECTS)
        api_key = ""
        for day in sorted({_BOUGHT, _UPGRADED, 40, 0, *(days for days, *_ in _PROJECTS)}, reverse=True):
            await travel(day)
            if day == _BOUGHT:
                begun = await checkouts.start(
                    database, rail, settings, actor(user), plan_id="pro", coupon="WELCOME20",
                    return_url=settings.base_url,
                )  # fmt: skip
                await rail.enter_card(begun.session_id or "", _CARD)
                await events.process(database, rail)
            elif day == _UPGRADED:
                await changes.change(database, rail, actor(user), plan_id="enterprise")
            elif day == 40:
                made = await keys.create(
                    database,
                    _OPERATOR,
                    name="Website sync",
                    permissions=["projects:read", "usage:write"],
                    user_id=user.id,
                )
                api_key = made.secret
            while waiting and waiting[0][0] == day:
                _, name, colours = waiting.pop(0)
                await _project(database, actor(user), name, colours)
            await worker.run_due()
        await _usage(database, settings, user)

        async def welcome(transaction: "Database") -> None:
            title, text = "Three tips for large canvases", "Group shapes, pin versions, and export before a redesign."
            await inbox.notify(transaction, user, "PRODUCT", title, text)

        await database.transaction(welcome)
        await worker.run_due()
    finally:
        database.clock.offset_ms = 0
        keyring.close()
        tools.keyring.close()
    if seal_keys := find(settings):
        kept = KeptHead(settings.data_path, database.name)
        await Sealer(database, seal_keys, kept=kept, may_found=True).seal()
    return api_key


async def _account(database: "Database", keyring: Any, password: str) -> "User":
    from ximler.accounts import administration

    return await administration.create(
        database, keyring, _OPERATOR, name=_NAME, email=_EMAIL, password=password, verified=True
    )


async def _project(database: "Database", actor: Actor, name: str, colours: tuple[str, ...]) -> None:
    from ximler.projects import canvas, projects, versions

    shapes = [
        {"id": f"shape-{place}", "type": "rect", "x": 40 * place, "y": 30 * place, "width": 160, "height": 90,
         "fill": colour}
        for place, colour in enumerate(colours)
    ]  # fmt: skip
    made = await projects.create(database, actor, name=name, description=f"Made by ximler demo: {len(shapes)} shapes")
    drawn = await canvas.replace(database, actor, made.id, {"title": name, "shapes": shapes}, based_on=None)
    await versions.create(database, actor, made.id, name="First draft")
    moved = [{"op": "replace", "path": "/shapes/0/x", "value": 240}]
    await canvas.patch(database, actor, made.id, moved, based_on=(drawn,))
    if name == "Old sketches":
        await projects.delete(database, actor, made.id)  # in the trash, to be restored


async def _usage(database: "Database", settings: Settings, user: "User") -> None:
    """Recorded calls of 30 days, more on weekdays and by day than by night."""
    from ximler.metering.ledger import settlement
    from ximler.metering.ledger.events import Event, record

    numbers = random.Random(75)  # noqa: S311 (the same curve each time)
    now = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
    happened = []
    for hours_ago in range(1, _USAGE_DAYS * 24):
        at = now - timedelta(hours=hours_ago)
        busy = (3 if at.weekday() < 5 else 1) * (4 if 7 <= at.hour <= 19 else 1)
        for source, most in (("website", 12), ("sync", 4)):
            amount = numbers.randint(0, most * busy)
            if amount:
                identity = f"{source}-{at:%Y%m%d%H}"
                happened.append(Event(id=identity, at=at, amount=amount, source=source, user_id=str(user.id)))
    for outcome in await record(database, _OPERATOR, happened):
        if outcome.status != "ACCEPTED":
            raise Invalid(f"The demo's usage was not accepted: {outcome.reason}")
    await settlement.settle(database, thresholds=settings.usage_alerts)
