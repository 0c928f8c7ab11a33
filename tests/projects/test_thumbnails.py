"""Small pictures of projects."""

import asyncio
import io
import subprocess
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from bson import ObjectId
from PIL import Image
from tests.accounts.test_avatars import huge_png, picture
from tests.projects.test_assets import project
from tests.serving import Client

from ximler.core.actor import Actor
from ximler.core.errors import Invalid, NotFound
from ximler.database import Database
from ximler.projects import canvas, projects, thumbnails, trash
from ximler.schema.project_thumbnail import PROJECT_THUMBNAILS

RECT = {"type": "rectangle", "x": 0, "y": 0, "width": 100, "height": 50}


@pytest.mark.slow
async def test_a_thumbnail_is_drawn_until_one_is_sent(database: Database, ada: Actor, bob: Actor) -> None:
    where = await project(database, ada)
    with pytest.raises(NotFound, match="nothing"):
        await thumbnails.get(database, ada, where)
    await canvas.replace(database, ada, where, {"elements": [None, RECT]}, based_on=None)
    first, again = await asyncio.gather(*(thumbnails.get(database, ada, where) for _ in range(2)))
    assert first.data == again.data
    with Image.open(io.BytesIO(first.data)) as shown:
        assert (shown.format, max(shown.size)) == ("PNG", 512)
    await canvas.replace(database, ada, where, {"elements": [RECT, {**RECT, "y": 70}]}, based_on=None)
    drawn = await thumbnails.get(database, ada, where)
    assert drawn.data != first.data
    changed = (await projects.get(database, ada, where)).updated_at

    for refused, said in ((huge_png(40_000), "pixels"), (b"<svg/>", "picture")):
        with pytest.raises(Invalid, match=said):
            await thumbnails.set_picture(database, ada, where, refused)
    sent = await thumbnails.set_picture(database, ada, where, picture())
    assert (await projects.get(database, ada, where)).updated_at > changed
    await canvas.replace(database, ada, where, {"elements": [RECT]}, based_on=None)
    assert (await thumbnails.get(database, ada, where)).data == sent.data
    for forbidden in (
        thumbnails.get(database, bob, where),
        thumbnails.set_picture(database, bob, where, picture()),
        thumbnails.remove(database, bob, where),
    ):
        with pytest.raises(NotFound):
            await forbidden
    await thumbnails.remove(database, ada, where)
    assert (await thumbnails.get(database, ada, where)).data != sent.data
    await projects.delete(database, ada, where)
    await trash.purge(database, ada, where)
    assert await database[PROJECT_THUMBNAILS].count({}) == 0


async def test_a_canvas_that_shows_nothing_is_read_once(
    database: Database, ada: Actor, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = await projects.create(database, ada, name="p", canvas_data={"shapes": [RECT]})
    reads: list[ObjectId] = []
    read = canvas.read

    async def counted(database: Database, actor: Actor, project_id: ObjectId) -> Any:
        reads.append(project_id)
        return await read(database, actor, project_id)

    monkeypatch.setattr(canvas, "read", counted)
    for _ in range(2):
        with pytest.raises(NotFound, match="nothing"):
            await thumbnails.get(database, ada, made.id)
    assert len(reads) == 1
    await projects.update(database, ada, made.id, {"settings": {"records": {"list": "shapes", "id": "id"}}})
    assert (await thumbnails.get(database, ada, made.id)).data
    assert len(reads) == 2


async def test_a_drawing_of_a_project_that_is_purged_meanwhile_is_not_kept(
    database: Database, ada: Actor, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = await projects.create(database, ada, name="p", canvas_data={"elements": [RECT]})
    read = canvas.read

    async def purged(database: Database, actor: Actor, project_id: ObjectId) -> Any:
        found = await read(database, actor, project_id)
        await projects.delete(database, actor, project_id)
        await trash.purge(database, actor, project_id)
        return found

    monkeypatch.setattr(canvas, "read", purged)
    with pytest.raises(NotFound):
        await thumbnails.get(database, ada, made.id)
    assert await database[PROJECT_THUMBNAILS].count({}) == 0


async def test_a_drawing_that_takes_too_long_is_ended_and_others_wait_for_none(
    database: Database, ada: Actor, bob: Actor, monkeypatch: pytest.MonkeyPatch
) -> None:
    hers, his = await project(database, ada), await project(database, bob)
    for actor, where in ((ada, hers), (bob, his)):
        await canvas.replace(database, actor, where, {"elements": [RECT]}, based_on=None)
    started: list[subprocess.Popen[bytes]] = []

    def popen(*given: Any, **more: Any) -> subprocess.Popen[bytes]:
        started.append(process := subprocess.Popen(*given, **more))
        return process

    monkeypatch.setattr(thumbnails, "subprocess", SimpleNamespace(**{**vars(subprocess), "Popen": popen}))
    with monkeypatch.context() as slow:
        slow.setattr(thumbnails, "_DRAW", "import time; time.sleep(1000)")
        slow.setattr(thumbnails, "_LONGEST_S", 0.3)
        late = [asyncio.create_task(thumbnails.get(database, ada, hers)) for _ in range(3)]
        with pytest.raises(NotFound):
            await asyncio.shield(late[0])
        slow.undo()
        assert (await thumbnails.get(database, bob, his)).data
    for task in late:
        task.cancel()
    await asyncio.wait(late)
    assert (await thumbnails.get(database, ada, hers)).data
    for process in started:
        assert await asyncio.to_thread(process.wait, 10) in (0, -9)


@pytest.fixture
async def signed_in(app, settings) -> Client:
    return await Client(app).join("client@example.com")


async def test_a_thumbnail_over_rest_and_by_its_url(signed_in: Client) -> None:
    made = await signed_in.ask(
        "mutation ($input: CreateProjectInput!) { createProject(input: $input) { id thumbnailUrl } }",
        input={"name": "p", "canvasData": {"elements": [RECT]}},
    )
    path, url = f"/v1/projects/{made['createProject']['id']}/thumbnail", made["createProject"]["thumbnailUrl"]
    key = {"Authorization": f"Bearer {signed_in.token}"}

    async def send(method: str, path: str, status: int, **given: object) -> httpx.Response:
        response = await signed_in.http.request(method, path, **given)  # type: ignore[arg-type]  # any of its arguments
        assert response.status_code == status, response.text
        return response

    drawn = await send("GET", url, 200)
    assert drawn.headers["content-type"] == "image/png"
    await send("GET", url, 304, headers={"If-None-Match": drawn.headers["etag"]})
    await send("PUT", path, 204, headers=key, files={"file": ("a.png", picture())})
    sent = await send("GET", path, 200, headers=key)
    assert (sent.headers["content-type"], sent.content != drawn.content) == ("image/webp", True)
    await send("PUT", path, 422, headers=key, content=b"<svg/>")
    await send("DELETE", path, 204, headers=key)
    assert (await send("GET", url, 200)).content == drawn.content
    await send("GET", url[:-2] + "AA", 403)
    await send("GET", url.replace("/thumbnails/", "/assets/"), 403)
