"""Shared projects: what each role may do, whose limits count, and what it costs."""

import asyncio
import itertools
from typing import Any

import msgspec
import pytest
from bson import ObjectId
from tests.mailing import Mailbox, worker_of

from ximler.accounts.keyring import Keyring
from ximler.accounts.throttle import Throttled
from ximler.core.actor import Actor
from ximler.core.errors import Forbidden, Invalid, LimitExceeded, NotFound
from ximler.core.settings import Settings
from ximler.database import Database
from ximler.database.monitoring import round_trips
from ximler.projects import (
    access,
    assets,
    assets_uploads,
    canvas,
    duplicates,
    links,
    projects,
    sharing,
    trash,
    versions,
)
from ximler.projects.patches import Saver
from ximler.schema.project import Project
from ximler.schema.project_share import PROJECT_LINKS, PROJECT_SHARES
from ximler.schema.user import User


@pytest.fixture
def keyring(settings: Settings) -> Any:
    keyring = Keyring(settings)
    yield keyring
    keyring.close()


async def person(database: Database, email: str, *, verified: bool = True) -> Actor:
    user = await database.users.insert(User(name="Bob", email=email, password="-", email_verified=verified))
    return Actor(kind="user", via="session", user_id=user.id)


@pytest.fixture
async def ada(database: Database) -> Actor:
    return await person(database, "ada@example.com")


@pytest.fixture
async def bob(database: Database) -> Actor:
    return await person(database, "bob@example.com")


@pytest.fixture
async def drawn(database: Database, ada: Actor) -> Project:
    return await projects.create(
        database, ada, name="Øresund bridge", canvas_data={"elements": [{"id": "a", "x": 1}]}, settings={"g": 1}
    )


@pytest.mark.slow
async def test_a_reader_reads_and_an_editor_edits(
    database: Database, keyring: Keyring, ada: Actor, bob: Actor, drawn: Project
) -> None:
    kept = await versions.create(database, ada, drawn.id)
    sent = await assets_uploads.begin(database, ada, drawn.id, name="a", size_bytes=5, most=9)
    await sent.write(b"hello")
    asset = await sent.finish()
    saver = Saver(database)
    seq = itertools.count(1)

    async def reads() -> None:
        assert (await projects.get(database, bob, drawn.id)).name == "Øresund bridge"
        assert (await projects.settings_of(database, bob, [drawn.id]))[drawn.id]["g"]
        assert (await canvas.read(database, bob, drawn.id)).canvas_data["elements"]
        assert (await projects.canvases(database, bob, [drawn.id]))[drawn.id]["elements"]
        assert (await versions.page(database, bob, drawn.id)).items
        assert await versions.content(database, bob, drawn.id, kept.id)
        assert (await assets.get(database, bob, drawn.id, asset.id)).digest == asset.digest

    writes = {
        "settings": lambda: projects.update(database, bob, drawn.id, {"settings": {"g": 2}}),
        "canvas": lambda: canvas.merge(database, bob, drawn.id, {"title": "t"}, based_on=None),
        "records": lambda: saver.save(bob, drawn.id, {"client": "tab", "seq": next(seq), "set": {"a": {"x": 2}}}),
        "version": lambda: versions.create(database, bob, drawn.id, name="b"),
        "asset": lambda: assets_uploads.begin(database, bob, drawn.id, name="a", size_bytes=1, most=1),
    }
    owners = {
        "star": lambda: projects.update(database, bob, drawn.id, {"starred": True}),
        "trash": lambda: projects.delete(database, bob, drawn.id),
        "copy": lambda: duplicates.make(database, bob, drawn.id),
        "share": lambda: sharing.share(database, keyring, bob, drawn.id, email="c@example.com", role="READER"),
        "people": lambda: sharing.people(database, bob, drawn.id),
        "link": lambda: links.create(database, bob, drawn.id),
        "links": lambda: links.page(database, bob, drawn.id),
    }

    async def outcomes() -> dict[str, type[Exception] | None]:
        found: dict[str, type[Exception] | None] = {}
        for name, act in (writes | owners).items():
            try:
                await act()
                found[name] = None
            except (NotFound, Forbidden) as error:
                found[name] = type(error)
        return found

    nothing: dict[str, Any] = dict.fromkeys(writes | owners, NotFound)
    with pytest.raises(NotFound):
        await reads()
    assert await outcomes() == nothing

    await sharing.share(database, keyring, ada, drawn.id, email="Bob@Example.com", role="READER")
    await reads()
    assert await outcomes() == nothing | dict.fromkeys([*writes, "star"], Forbidden)

    await sharing.share(database, keyring, ada, drawn.id, email="bob@example.com", role="EDITOR")
    await reads()
    assert await outcomes() == nothing | dict.fromkeys(writes) | {"star": Forbidden}
    assert (await canvas.read(database, ada, drawn.id)).canvas_data["title"] == "t"

    await projects.delete(database, ada, drawn.id)
    with pytest.raises(NotFound):
        await reads()
    assert await outcomes() == nothing
    await projects.restore(database, ada, drawn.id)
    await reads()

    await sharing.revoke(database, ada, drawn.id, "bob@example.com")
    with pytest.raises(NotFound):
        await reads()
    assert await outcomes() == nothing
    await saver.close()


async def test_what_an_editor_adds_counts_for_the_owner_and_names_the_editor(
    database: Database, keyring: Keyring, ada: Actor, bob: Actor, drawn: Project
) -> None:
    await sharing.share(database, keyring, ada, drawn.id, email="bob@example.com", role="EDITOR")
    sent = await assets_uploads.begin(database, bob, drawn.id, name="a", size_bytes=1000, most=1000)
    await sent.write(b"x" * 1000)
    asset = await sent.finish()
    assert asset.user_id == ada.user_id
    gauges = {each["_id"]: each["storageBytes"] async for each in database.raw["gauges"].find({})}
    assert (gauges[ada.user_id] >= 1000, bob.user_id in gauges) == (True, False)
    await sharing.leave(database, bob, drawn.id)
    entry = await database.raw["auditlogs"].find_one({"action": "projects.project.unshared"})
    assert entry is not None
    assert (entry["userId"], entry["metadata"]["actorId"]) == (ada.user_id, bob.user_id)


async def test_an_upload_that_is_under_way_ends_with_the_access(
    database: Database, keyring: Keyring, ada: Actor, bob: Actor, drawn: Project
) -> None:
    await sharing.share(database, keyring, ada, drawn.id, email="bob@example.com", role="EDITOR")
    sent = await assets_uploads.begin(database, bob, drawn.id, name="a", size_bytes=5, most=9)
    await sent.write(b"hello")
    await sharing.revoke(database, ada, drawn.id, "bob@example.com")
    with pytest.raises(NotFound):
        await sent.finish()
    await sent.abandon()
    assert (await assets.page(database, ada, drawn.id)).items == []


async def test_a_share_waits_for_an_account_with_the_confirmed_address(
    database: Database, settings: Settings, keyring: Keyring, ada: Actor, drawn: Project
) -> None:
    mailbox = Mailbox()
    worker = worker_of(database, settings, keyring, mailbox)
    await sharing.share(database, keyring, ada, drawn.id, email="new@example.com", role="READER")
    await worker.run_due()
    (mail,) = mailbox.messages
    body = mail.get_body(("plain",))
    assert body is not None
    assert "ada@example.com shared a project with you" in body.get_content()
    assert "bridge" not in mail.as_string()
    await database.users.patch({"_id": ada.user_id}, {"$set": {"email": "evil.example/win@example.com"}})
    await sharing.share(database, keyring, ada, drawn.id, email="other@example.com", role="READER")
    await worker.run_due()
    assert "evil.example" not in mailbox.messages[-1].as_string()  # a mail program would make a link of it
    new = await person(database, "new@example.com", verified=False)
    with pytest.raises(NotFound):
        await projects.get(database, new, drawn.id)
    await database.users.patch({"_id": new.user_id}, {"$set": {"emailVerified": True}})
    assert (await projects.get(database, new, drawn.id)).id == drawn.id
    await database.users.patch({"_id": new.user_id}, {"$set": {"email": "moved@example.com"}})
    thief = await person(database, "new@example.com")
    with pytest.raises(NotFound):
        await projects.get(database, thief, drawn.id)
    assert (await sharing.page(database, thief)).items == []
    assert (await sharing.page(database, new)).items


async def test_an_address_receives_only_so_many_mails(
    database: Database, settings: Settings, keyring: Keyring, ada: Actor, bob: Actor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sharing, "_MAILS", msgspec.structs.replace(sharing._MAILS, free=1))
    mailbox = Mailbox()
    for owner in (ada, bob):
        made = await projects.create(database, owner, name="p")
        await sharing.share(database, keyring, owner, made.id, email="new@example.com", role="READER")
    await worker_of(database, settings, keyring, mailbox).run_due()
    assert len(mailbox.messages) == 1
    assert await database[PROJECT_SHARES].count({"email": "new@example.com"}) == 2


async def test_people_with_an_account_are_notified_once(
    database: Database, settings: Settings, keyring: Keyring, ada: Actor, bob: Actor, drawn: Project
) -> None:
    worker = worker_of(database, settings, keyring, Mailbox())
    for role in ("READER", "EDITOR", "EDITOR"):
        await sharing.share(database, keyring, ada, drawn.id, email="bob@example.com", role=role)  # type: ignore[arg-type]  # of both
    await worker.run_due()
    (told,) = await database.notifications.find({"userId": bob.user_id})
    assert "edit it" in told.message  # as the share is when the job runs
    assert "ada@" not in told.message
    assert [(each.email, each.role) for each in await sharing.people(database, ada, drawn.id)] == [
        ("bob@example.com", "EDITOR")
    ]


async def test_shared_projects_are_listed_and_searched(
    database: Database, keyring: Keyring, ada: Actor, bob: Actor, drawn: Project
) -> None:
    others = [await projects.create(database, ada, name=f"Plan {n}") for n in range(2)]
    for each in (drawn, *others):
        await sharing.share(database, keyring, ada, each.id, email="bob@example.com", role="READER")
    await projects.create(database, bob, name="Plan of his own")
    page = await sharing.page(database, bob, first=2)
    assert ([each.name for each in page.items], page.has_next) == (["Plan 1", "Plan 0"], True)
    assert [each.id for each in (await sharing.page(database, bob, query="ores bri")).items] == [drawn.id]
    await projects.update(database, ada, drawn.id, {"description": "changed last"})
    for sort, wanted in (("NAME", drawn.name), ("UPDATED", drawn.name), ("CREATED", "Plan 1")):
        names: list[str] = []
        while len(names) < 3:
            after = projects.order_of(sort).decoded(page.end_cursor) if names else None
            page = await sharing.page(database, bob, sort=sort, first=1, after=after)
            names += [each.name for each in page.items]
        assert (names[0], len(set(names))) == (wanted, 3)
    assert not page.has_next
    await projects.delete(database, ada, others[0].id)
    assert len((await sharing.page(database, bob, query="plan")).items) == 1
    assert {each.name for each in (await projects.page(database, bob)).items} == {"Plan of his own"}


async def test_owners_pay_nothing_for_sharing(
    database: Database, keyring: Keyring, ada: Actor, bob: Actor, drawn: Project
) -> None:
    await sharing.share(database, keyring, ada, drawn.id, email="bob@example.com", role="EDITOR")
    access._shared.clear()
    cost: dict[str, list[int]] = {}
    for who, actor in (("owner", ada), ("editor", bob), ("editor again", bob)):
        cost[who] = []
        for act in (
            lambda actor=actor: projects.get(database, actor, drawn.id),
            lambda actor=actor: canvas.read(database, actor, drawn.id),
            lambda actor=actor: canvas.revision_of(database, actor, drawn.id),
        ):
            with round_trips() as trips:
                await act()
            cost[who].append(len(trips))
    assert cost == {"owner": [1, 1, 1], "editor": [6, 2, 2], "editor again": [2, 2, 2]}


async def test_only_sensible_shares_are_made(
    database: Database, keyring: Keyring, ada: Actor, drawn: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    for email in ("ADA@example.com", "nobody", ""):
        with pytest.raises(Invalid):
            await sharing.share(database, keyring, ada, drawn.id, email=email, role="READER")
    monkeypatch.setattr(sharing, "MOST", 1)
    await sharing.share(database, keyring, ada, drawn.id, email="a@example.com", role="READER")
    with pytest.raises(LimitExceeded):
        await sharing.share(database, keyring, ada, drawn.id, email="b@example.com", role="READER")
    for _ in range(12):  # the same again costs nothing
        await sharing.share(database, keyring, ada, drawn.id, email="a@example.com", role="READER")
    with pytest.raises(Throttled):  # noqa: PT012 (one of them)
        for _ in range(12):
            await sharing.revoke(database, ada, drawn.id, "a@example.com")
            await sharing.share(database, keyring, ada, drawn.id, email="a@example.com", role="READER")
    another = await person(database, "d@example.com")
    theirs = await projects.create(database, another, name="p")
    await sharing.share(database, keyring, another, theirs.id, email="a@example.com", role="READER")
    unconfirmed = await person(database, "c@example.com", verified=False)
    theirs = await projects.create(database, unconfirmed, name="p")
    with pytest.raises(Forbidden):
        await sharing.share(database, keyring, unconfirmed, theirs.id, email="a@example.com", role="READER")


async def test_calls_at_the_same_moment_do_not_exceed_the_limits(
    database: Database, keyring: Keyring, ada: Actor, drawn: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sharing, "MOST", 1)
    monkeypatch.setattr(links, "MOST", 1)
    shares = [sharing.share(database, keyring, ada, drawn.id, email=f"{n}@x.com", role="READER") for n in range(4)]
    for racers in (shares, [links.create(database, ada, drawn.id) for _ in range(4)]):
        done: list[Any] = await asyncio.gather(*racers, return_exceptions=True)
        assert sorted(type(each) is LimitExceeded for each in done) == [False, True, True, True]


async def test_nothing_is_left_of_shares_and_links_when_project_or_person_is_gone(
    database: Database, keyring: Keyring, ada: Actor, bob: Actor, drawn: Project
) -> None:
    other = await projects.create(database, ada, name="p")
    for each in (drawn, other):
        await sharing.share(database, keyring, ada, each.id, email="bob@example.com", role="READER")
        await links.create(database, ada, each.id)
    await projects.get(database, bob, other.id)
    await projects.delete(database, ada, drawn.id)
    await trash.empty(database, ada)
    assert [each.project_id for each in await database[PROJECT_SHARES].find({})] == [other.id]
    assert [each.project_id for each in await database[PROJECT_LINKS].find({})] == [other.id]
    assert bob.user_id is not None
    await sharing.erase(database, bob.user_id, "bob@example.com")
    assert await database[PROJECT_SHARES].find({}) == []


async def test_members_have_no_access_while_the_owner_is_locked_or_closed(
    database: Database, keyring: Keyring, ada: Actor, bob: Actor, drawn: Project
) -> None:
    await sharing.share(database, keyring, ada, drawn.id, email="bob@example.com", role="EDITOR")
    assert (await projects.get(database, bob, drawn.id)).id == drawn.id
    now = database.clock.now()
    for collection, field in (("credentials", "lockedAt"), ("users", "deletedAt")):
        await database.raw[collection].update_one({"_id": ada.user_id}, {"$set": {field: now}}, upsert=True)
        with pytest.raises(NotFound):
            await projects.get(database, bob, drawn.id)
        assert (await sharing.page(database, bob)).items == []
        assert await projects.settings_of(database, bob, [drawn.id]) == {}
        assert await projects.canvases(database, bob, [drawn.id]) == {}
        assert await sharing.shared_with(database, bob, [drawn.id]) == {}
        await database.raw[collection].update_one({"_id": ada.user_id}, {"$unset": {field: ""}})
        assert (await sharing.page(database, bob)).items


async def test_a_link_reads_until_it_ends(database: Database, ada: Actor, bob: Actor, drawn: Project) -> None:
    link, token = await links.create(database, ada, drawn.id)
    visitor = Actor()
    opened = await links.open_link(database, visitor, token)
    assert (opened.project.id, opened.link.id) == (drawn.id, link.id)
    stored = await database.raw["projectlinks"].find_one({})
    assert stored is not None
    assert token[-40:] not in str(stored)
    wrong = [token[:-1] + ("0" if token[-1] != "0" else "1"), token[:-1], f"xil_{ObjectId()}{ObjectId()}{'0' * 40}", ""]
    for each in wrong:
        with pytest.raises(NotFound):
            await links.open_link(database, visitor, each)
    with pytest.raises(NotFound):
        await links.revoke(database, bob, drawn.id, link.id)

    await projects.delete(database, ada, drawn.id)
    with pytest.raises(NotFound):
        await links.open_link(database, visitor, token)
    await projects.restore(database, ada, drawn.id)
    await database.users.patch({"_id": ada.user_id}, {"$set": {"deletedAt": database.clock.now()}})
    with pytest.raises(NotFound):
        await links.open_link(database, visitor, token)
    await database.raw["users"].update_one({"_id": ada.user_id}, {"$unset": {"deletedAt": ""}})
    past = database.clock.now()
    await database[PROJECT_LINKS].patch({"_id": link.id, "projectId": drawn.id}, {"$set": {"expiresAt": past}})
    with pytest.raises(NotFound):
        await links.open_link(database, visitor, token)
    other, again = await links.create(database, ada, drawn.id)
    await links.revoke(database, ada, drawn.id, other.id)
    with pytest.raises(NotFound):
        await links.open_link(database, visitor, again)
