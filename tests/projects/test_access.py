"""Every function for members: the same at their first call as later, and no effect for a stranger."""

import importlib
import io
import pkgutil
import zipfile
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from bson import ObjectId
from tests.accounts.test_avatars import picture

import ximler.projects
from ximler.core.actor import Actor
from ximler.core.errors import Forbidden, NotFound
from ximler.database import Database
from ximler.projects import access, archives, canvas, projects, thumbnails, versions
from ximler.schema.project_share import PROJECT_SHARES, ProjectShare, Role
from ximler.schema.project_thumbnail import PROJECT_THUMBNAILS
from ximler.schema.user import User

CANVAS = {"elements": [{"id": "a", "type": "rectangle", "x": 0, "y": 0, "width": 9, "height": 9}]}
Call = Callable[[Database, Actor, ObjectId, ObjectId], Any]

READS: dict[Any, Call] = {
    archives.export: lambda d, a, p, v: archives.export(d, a, p),
    archives.export_file: lambda d, a, p, v: archives.export_file(d, a, p),
    canvas.read: lambda d, a, p, v: canvas.read(d, a, p),
    canvas.read_json: lambda d, a, p, v: canvas.read_json(d, a, p),
    canvas.read_file: lambda d, a, p, v: canvas.read_file(d, a, p),
    canvas.revision_of: lambda d, a, p, v: canvas.revision_of(d, a, p),
    projects.get: lambda d, a, p, v: projects.get(d, a, p),
    thumbnails.get: lambda d, a, p, v: thumbnails.get(d, a, p),
    versions.changes: lambda d, a, p, v: versions.changes(d, a, p, v, to=v),
    versions.content: versions.content,
    versions.content_file: versions.content_file,
    versions.get: versions.get,
    versions.page: lambda d, a, p, v: versions.page(d, a, p),
}
CHANGES: dict[Any, Call] = {
    canvas.merge: lambda d, a, p, v: canvas.merge(d, a, p, {"title": "t"}, based_on=None),
    canvas.patch: lambda d, a, p, v: canvas.patch(
        d, a, p, [{"op": "add", "path": "/title", "value": 1}], based_on=None
    ),
    canvas.replace: lambda d, a, p, v: canvas.replace(d, a, p, CANVAS, based_on=None),
    projects.update: lambda d, a, p, v: projects.update(d, a, p, {"name": "n"}),
    thumbnails.remove: lambda d, a, p, v: thumbnails.remove(d, a, p),
    thumbnails.set_picture: lambda d, a, p, v: thumbnails.set_picture(d, a, p, picture(size=(9, 9))),
    versions.create: lambda d, a, p, v: versions.create(d, a, p),
    versions.delete: versions.delete,
    versions.restore: versions.restore,
    versions.update: lambda d, a, p, v: versions.update(d, a, p, v, {"name": "n"}),
}


@pytest.fixture(autouse=True)
def cold(monkeypatch: pytest.MonkeyPatch) -> None:
    """No share was used before."""
    monkeypatch.setattr(access, "_shared", type(access._shared)())


async def _share(database: Database, bob: Actor, role: Role) -> tuple[Actor, ObjectId, ObjectId]:
    """A project of a new user's, which is shared with Bob."""
    user = await database.users.insert(User(name="Ada", email=f"{ObjectId()}@example.com", password="-"))
    ada = Actor(kind="user", via="session", user_id=user.id)
    made = await projects.create(database, ada, name="P", canvas_data=CANVAS)
    version = await versions.create(database, ada, made.id)
    await database[PROJECT_SHARES].insert(
        ProjectShare(
            id=access.key_of(made.id, "bob@example.com"),
            user_id=ada.require_user(),
            project_id=made.id,
            email="bob@example.com",
            role=role,
            member_id=bob.user_id,
        )
    )
    return ada, made.id, version.id


async def _whole(result: Any) -> Any:
    if not isinstance(result, AsyncIterator):
        return result
    whole = b"".join([piece async for piece in result])
    if not whole.startswith(b"PK"):
        return whole
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:  # without its time
        return {name: archive.read(name) for name in archive.namelist()}


async def _stored(database: Database) -> dict[str, list[Any]]:
    return {
        name: await database.raw[name].find().sort("_id", 1).to_list()
        for name in await database.raw.list_collection_names()
        if name.startswith(("project", "canvas", "gauges", "usage", "asset"))
    }


def test_each_shared_function_is_called_here() -> None:
    names = [each.name for each in pkgutil.iter_modules(ximler.projects.__path__, "ximler.projects.")]
    code = access.reader(canvas.read).__code__  # of the wrapper, which is the same for each of them
    values = [value for name in names for value in vars(importlib.import_module(name)).values()]
    shared = {each for each in values if getattr(each, "__code__", None) is code}
    assert shared == READS.keys() | CHANGES.keys()


async def test_a_reader_reads_at_the_first_call_as_later(database: Database, bob: Actor) -> None:
    ada, project_id, version_id = await _share(database, bob, "READER")
    for function, call in READS.items():
        access._shared.clear()
        first, later = [await _whole(await call(database, bob, project_id, version_id)) for _ in "12"]
        assert first == later == await _whole(await call(database, ada, project_id, version_id)), function
    before = await _stored(database)
    for call in CHANGES.values():
        access._shared.clear()
        for _ in range(2):
            with pytest.raises(Forbidden):
                await call(database, bob, project_id, version_id)
    assert await _stored(database) == before


async def test_an_editor_changes_at_the_first_call_as_later(database: Database, bob: Actor) -> None:
    for call in CHANGES.values():
        results = []
        for warm in (False, True):
            ada, project_id, version_id = await _share(database, bob, "EDITOR")
            if warm:
                await projects.get(database, bob, project_id)
            await call(database, bob, project_id, version_id)
            results.append(
                (
                    (await canvas.read(database, ada, project_id)).canvas_data,
                    (await projects.get(database, ada, project_id)).name,
                    [each.name for each in (await versions.page(database, ada, project_id)).items],
                    await database[PROJECT_THUMBNAILS].count({"_id": project_id}),
                )
            )
        assert results[0] == results[1]


async def test_a_stranger_changes_nothing(database: Database, ada: Actor, bob: Actor) -> None:
    made = await projects.create(database, ada, name="P", canvas_data=CANVAS)
    version = await versions.create(database, ada, made.id)
    before = await _stored(database)
    for call in (READS | CHANGES).values():
        with pytest.raises(NotFound):
            await call(database, bob, made.id, version.id)
    assert await _stored(database) == before
