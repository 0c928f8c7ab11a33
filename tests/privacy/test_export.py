"""Taking along all that is kept of one: everything of one's own, nothing that lets anybody in, in constant
memory.
"""

import asyncio
import io
import json
import sys
import zipfile
from typing import Any

import pytest
from bson import ObjectId
from tests.serving import Client

from ximler.accounts import administration, avatars, sessions, step_up
from ximler.accounts.keyring import Keyring
from ximler.core.actor import SYSTEM, Actor
from ximler.core.errors import NotFound, Unauthenticated
from ximler.core.settings import Settings
from ximler.database import Database
from ximler.notifications import inbox
from ximler.privacy import export
from ximler.projects import assets_uploads, projects
from ximler.projects.patches import Saver
from ximler.schema.api_key import ApiKey
from ximler.schema.payment import Payment
from ximler.schema.user import User

PASSWORD = "correct horse battery"
# Fields of collections with personal data that the export omits.
LEFT_OUT = {
    "projects": {
        "canvasRevision",
        "canvasLog",
        "canvasClients",
        "canvasBase",
        "canvasTail",
        "storageRoom",
        "userId",
        "searchTerms",
        "searchKeys",
        "versionsSize",
        "assetsSize",
    },
    "subscriptions": {"userId"},
    "payments": {"userId"},
    "usage": {"userId"},
    "apikeys": {"userId", "keyHash"},
    "notifications": {"userId"},
    "auditlogs": {"userId"},
}


def test_fields_excluded_from_the_export_are_listed_explicitly() -> None:
    left_out = {c.name: c.marks.keys() - set(c.exported) for c in export.CONTENTS.values()}
    assert left_out == LEFT_OUT


@pytest.fixture
def keyring(settings: Settings) -> Any:
    keyring = Keyring(settings)
    yield keyring
    keyring.close()


@pytest.fixture
async def ada(database: Database, keyring: Keyring) -> User:
    return await administration.create(
        database, keyring, SYSTEM, name="Ada", email="ada@example.com", password=PASSWORD
    )


@pytest.fixture
def me(database: Database, ada: User) -> Actor:
    return Actor(kind="user", via="session", user_id=ada.id, authenticated_at=database.clock.now())


async def taken(database: Database, actor: Actor, user_id: ObjectId) -> zipfile.ZipFile:
    return zipfile.ZipFile(io.BytesIO(b"".join([part async for part in await export.take(database, actor, user_id)])))


async def test_an_export_has_all_of_the_users_data_and_none_of_others(database, keyring, settings, ada, me) -> None:
    bob = await administration.create(database, keyring, SYSTEM, name="Bob", email="bob@example.com", password=PASSWORD)
    for user in (ada, bob):
        actor = Actor(kind="user", via="session", user_id=user.id)
        made = [
            await projects.create(database, actor, name=f"{user.name}'s {n}", canvas_data={"n": n}) for n in range(2)
        ]
        await projects.delete(database, actor, made[0].id)
        await database.payments.insert(Payment(user_id=user.id, amount=29.99, status="PAID", description=user.name))
        await inbox.notify(database, user, "BILLING", f"{user.name} paid", "Thank you.")
        await database.api_keys.insert(ApiKey(user_id=user.id, name=user.name, key_hash="SECRET"))
        await sessions.sign_in(
            database, keyring, settings, Actor(user_agent="a browser"), email=user.email, password=PASSWORD
        )
    archive = await taken(database, me, ada.id)
    assert archive.testzip() is None
    said = {name: json.loads(archive.read(name)) for name in archive.namelist()}
    assert set(said) == {"account.json", *export.CONTENTS}
    assert {p["name"]: p["canvasData"] for p in said["projects.json"]} == {"Ada's 0": {"n": 0}, "Ada's 1": {"n": 1}}
    assert [p["amount"] for p in said["payments.json"]] == [29.99]
    assert [n["title"] for n in said["notifications.json"]] == ["Ada paid"]
    assert said["account.json"]["email"] == "ada@example.com"
    assert said["account.json"]["sessions"][0]["userAgent"] == "a browser"
    assert said["history.json"][-1]["action"] == "privacy.data.exported"
    assert said["history.json"][-1]["metadata"] == {"actor": "user", "via": "session"}
    everything = b"".join(archive.read(name) for name in archive.namelist())
    for secret in (b"SECRET", b"argon2", b"Bob", b"bob@"):
        assert secret not in everything


async def test_data_stored_by_another_application_is_exported(database, ada, me) -> None:
    import bson
    from bson import Decimal128, Regex, Timestamp

    odd = {
        "d": Decimal128("1.5"),
        "r": Regex("x"),
        "t": Timestamp(1, 1),
        "b": b"\xff\0",
        "f": float("nan"),
        "o": ObjectId(),
    }
    odd |= {"binary": bson.Binary(b"x", 5), "code": bson.Code("f()"), "text": "\u2028 <&> \0 é"}
    await database.raw["projects"].insert_one({"userId": ada.id, "name": "odd", "canvasData": odd})
    (project,) = json.loads((await taken(database, me, ada.id)).read("projects.json"))
    assert project["canvasData"]["d"] == {"$numberDecimal": "1.5"}
    assert project["canvasData"]["r"] == {"$regularExpression": {"pattern": "x", "options": ""}}
    assert project["canvasData"]["text"] == odd["text"]
    assert project["canvasData"]["f"] is None


async def test_a_large_canvas_is_exported_whole(database, ada, me, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ximler.projects.bases.LIMIT", 10)
    made = await projects.create(database, me, name="P", canvas_data={"elements": [{"id": "a", "x": 1}]})
    await Saver(database).save(me, made.id, {"client": "tab", "seq": 1, "set": {"a": {"x": 2}}})
    (project,) = json.loads((await taken(database, me, ada.id)).read("projects.json"))
    assert project["canvasData"] == {"elements": [{"id": "a", "x": 2}]}


async def test_a_picture_is_in_it(database, ada, me) -> None:
    from tests.accounts.test_avatars import picture

    path = await avatars.set_picture(database, me, picture())
    archive = await taken(database, me, ada.id)
    assert archive.read(f"{path.removeprefix('/v1/')}.webp").startswith(b"RIFF")
    await avatars.remove(database, me)


async def test_assets_are_in_it_those_of_the_trash_too(database, ada, me) -> None:
    project = await projects.create(database, me, name="p")
    sent = await assets_uploads.begin(database, me, project.id, name="报告 a.txt", size_bytes=5, most=5)
    await sent.write(b"hello")
    asset = await sent.finish()
    await projects.delete(database, me, project.id)
    archive = await taken(database, me, ada.id)
    assert archive.read(f"assets/{project.id}/{asset.id}/报告 a.txt") == b"hello"


async def test_ones_own_alone_and_after_a_recent_sign_in(database, ada, me) -> None:
    stranger = Actor(kind="user", via="session", user_id=ObjectId(), authenticated_at=database.clock.now())
    for actor, refusal in (
        (stranger, NotFound),
        (Actor(), Unauthenticated),
        (Actor(kind="user", via="session", user_id=ada.id), step_up.StepUpRequired),
    ):
        with pytest.raises(refusal):
            await export.take(database, actor, ada.id)
    with pytest.raises(NotFound):
        await export.take(database, Actor(kind="operator", via="cli"), ObjectId())
    assert await database.audit_logs.count({"action": "privacy.data.exported"}) == 0
    await taken(database, Actor(kind="operator", via="cli"), ada.id)
    assert await database.audit_logs.count({"action": "privacy.data.exported", "userId": ada.id}) == 1


# In a process of its own: what other tests left running in this one allocates memory too.
PEAK = """
import asyncio, sys, threading, tracemalloc

from bson import ObjectId

from ximler.core.actor import Actor
from ximler.database import connect
from ximler.privacy import export


def watch(before, ended):
    while not ended.wait(0.01):
        if tracemalloc.get_traced_memory()[0] > before + 8_000_000:
            largest = tracemalloc.take_snapshot().statistics("lineno")[:10]
            print("more than 8 MB:", *largest, sep="\\n", file=sys.stderr)
            return


async def main(uri, name, user):
    database = await connect(uri, name=name)
    me = Actor(kind="operator", via="cli")
    for _ in range(2):  # what the first export keeps for good is no part of its peak
        tracemalloc.reset_peak()
        before, _ = tracemalloc.get_traced_memory()
        ended = threading.Event()
        watcher = threading.Thread(target=watch, args=(before, ended))
        watcher.start()
        size = 0
        async for part in await export.take(database, me, ObjectId(user)):
            size += len(part)
        _, peak = tracemalloc.get_traced_memory()
        ended.set()
        watcher.join()
    await database.close()
    print(peak - before if size > 10_000 else size)


tracemalloc.start()
asyncio.run(main(*sys.argv[1:]))
"""


@pytest.mark.parametrize("count", [20_000, pytest.param(100_000, marks=pytest.mark.soak)])
async def test_memory_stays_flat_over_many_documents(database, mongodb_uri: str, ada, count) -> None:
    text = "".join(chr(33 + n % 90) for n in range(500))
    told = []

    async def write(many: int) -> None:
        message = {"userId": ada.id, "type": "PRODUCT", "title": "t", "message": text, "createdAt": ada.created_at}
        await database.raw["notifications"].insert_many([{**message} for _ in range(many)])

    async def peak() -> int:
        pipe = asyncio.subprocess.PIPE
        arguments = "-c", PEAK, mongodb_uri, database.name, str(ada.id)
        other = await asyncio.create_subprocess_exec(sys.executable, *arguments, stdout=pipe, stderr=pipe)
        printed, errors = await other.communicate()
        told.append(errors.decode())
        assert other.returncode == 0, told
        return int(printed.split()[-1])  # after the log

    await write(2000)
    short = await peak()
    assert short > 100_000
    for _ in range(0, count, 5000):
        await write(5000)
    assert await peak() < short * 1.5, told[-1]  # of 700 bytes of JSON each


async def readers(database: Database) -> list[Any]:
    """Open cursors on what this test's export reads."""
    idle = [
        {"$currentOp": {"idleCursors": True}},
        {"$match": {"type": "idleCursor", "ns": f"{database.name}.notifications"}},
    ]
    async with await database.client.admin.aggregate(idle) as found:
        return await found.to_list()


@pytest.mark.slow
async def test_a_reader_that_leaves_lets_go_of_everything(database, ada, me) -> None:
    await database.raw["notifications"].insert_many(
        [{"userId": ada.id, "type": "PRODUCT", "title": "t" * 100, "message": "m" * 1000} for _ in range(3000)]
    )
    archive: Any = await export.take(database, me, ada.id)
    for _ in range(12):
        await anext(archive)
    assert await readers(database), "nothing is open to be let go of"
    await archive.aclose()
    assert await readers(database) == []


async def test_over_http(app: Any) -> None:
    eve = await Client(app).join("eve@example.com")
    await eve.create("Bridge")
    assert (await eve.http.get("/v1/export")).status_code == 401
    answer = await eve.http.get("/v1/export", headers={"Authorization": f"Bearer {eve.token}"})
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/zip"
    assert answer.headers["content-disposition"].startswith('attachment; filename="ximler-20')
    archive = zipfile.ZipFile(io.BytesIO(answer.content))
    assert archive.testzip() is None
    names = [project["name"] for project in json.loads(archive.read("projects.json"))]
    assert names == ["Bridge"]
    await eve.http.aclose()
