"""URLs of assets that need no credentials."""

import asyncio
import base64
import io
from datetime import timedelta
from typing import Any

import httpx
import pytest
from bson import ObjectId
from PIL import Image
from tests.accounts.test_avatars import picture
from tests.serving import Client

from ximler.core.actor import Actor
from ximler.database import Database
from ximler.projects.assets_links import link
from ximler.schema.asset import ASSETS

SVG = b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>"


@pytest.fixture
async def drawn(ada: Client) -> dict[str, Any]:
    """A project of Ada's with two assets."""
    project: str = (await ada.create("p"))["createProject"]["id"]
    made = [await _upload(ada, project, content) for content in (b"0123456789", SVG)]
    return {"project": project, "text": made[0], "svg": made[1]}


async def _upload(client: Client, project: str, content: bytes) -> dict[str, Any]:
    headers = {"Authorization": f"Bearer {client.token}"}
    made = await client.http.post(f"/v1/projects/{project}/assets", content=content, headers=headers)
    assert made.status_code == 201
    shown: dict[str, Any] = made.json()
    return shown


async def _get(client: Client, url: str, **headers: str) -> httpx.Response:
    return await client.http.get(url, headers=headers)


def _code(response: httpx.Response) -> tuple[int, str]:
    return response.status_code, response.json()["code"]


async def test_a_url_shows_the_file_without_credentials(ada: Client, drawn: dict[str, Any]) -> None:
    text = await _get(ada, drawn["text"]["url"])
    assert (text.status_code, text.content) == (200, b"0123456789")
    assert text.headers["cross-origin-resource-policy"] == "cross-origin"
    kept = text.headers["cache-control"]
    assert kept.startswith("private, max-age=")
    assert kept.endswith(", immutable")
    assert 1795 <= int(kept.split("=")[1].split(",")[0]) <= 3600
    part = await _get(ada, drawn["text"]["url"], Range="bytes=2-4")
    assert (part.status_code, part.content) == (206, b"234")
    svg = await _get(ada, drawn["svg"]["url"])
    assert svg.headers["content-disposition"].startswith("attachment;")
    assert svg.headers["content-security-policy"] == "sandbox; default-src 'none'"
    assert svg.headers["x-content-type-options"] == "nosniff"

    query = "query ($p: ID!) { projectAssets(projectId: $p) { nodes { id url urlExpiresAt } } }"
    nodes = (await ada.ask(query, p=drawn["project"]))["projectAssets"]["nodes"]
    again = next(node for node in nodes if node["id"] == drawn["text"]["id"])
    assert (await _get(ada, again["url"])).content == b"0123456789"


async def test_a_changed_url_is_rejected(ada: Client, drawn: dict[str, Any]) -> None:
    path, token = drawn["text"]["url"].split("?token=")
    other = f"/v1/assets/{drawn['svg']['id']}"
    assert _code(await _get(ada, f"{other}?token={token}")) == (403, "URL_INVALID")
    raw = base64.urlsafe_b64decode(token)
    for place in (0, 11, 12, 23, 24, 27, 28, len(raw) - 1):
        changed = bytearray(raw)
        changed[place] ^= 1
        url = f"{path}?token={base64.urlsafe_b64encode(changed).decode()}"
        assert _code(await _get(ada, url)) == (403, "URL_INVALID"), place
    for wrong in (token[:-1], token + "A", token[:-4] + "====", "A" * 84, "é" * 84):
        assert _code(await _get(ada, f"{path}?token={wrong}")) == (403, "URL_INVALID"), wrong
    assert _code(await _get(ada, path)) == (401, "UNAUTHENTICATED")


@pytest.mark.parametrize(("collection", "field"), [("credentials", "lockedAt"), ("users", "deletedAt")])
async def test_no_url_opens_once_the_account_is_locked_or_closed(
    ada: Client, drawn: dict[str, Any], database: Database, collection: str, field: str
) -> None:
    answer = await ada.ask("query ($p: ID!) { project(id: $p) { thumbnailUrl } }", p=drawn["project"])
    urls = (drawn["text"]["url"], answer["project"]["thumbnailUrl"])
    user_id = ObjectId((await ada.ask("{ me { id } }"))["me"]["id"])
    await database.raw[collection].update_one({"_id": user_id}, {"$set": {field: database.clock.now()}}, upsert=True)
    for url in urls:
        refused = await _get(ada, url)
        assert (refused.status_code, "closed or locked" in refused.text) == (404, True)


async def test_a_url_expires(ada: Client, drawn: dict[str, Any], database: Database) -> None:
    keyring = ada.app._app.state.keyring  # type: ignore[attr-defined]  # the application inside `Requests`
    asset = await database[ASSETS].find_one({"_id": ObjectId(drawn["text"]["id"])})
    assert asset is not None
    actor, now = Actor(user_id=asset.user_id), database.clock.now()
    for ago, status in ((29, 200), (61, 403)):
        made = link(keyring, actor, asset, now - timedelta(minutes=ago))
        assert (made.expires_at <= now) == (status == 403)
        got = await _get(ada, made.url)
        assert got.status_code == status
    assert _code(got) == (403, "URL_EXPIRED")
    assert "ask for a new one" in got.json()["detail"]
    strangers = link(keyring, Actor(user_id=ObjectId()), asset, now)
    assert _code(await _get(ada, strangers.url)) == (404, "NOT_FOUND")


async def test_a_url_ends_with_the_access_of_its_user(ada: Client, drawn: dict[str, Any]) -> None:
    for mutation, status in (("deleteProject", 404), ("restoreProject", 200)):
        await ada.ask(f"mutation ($id: ID!) {{ {mutation}(id: $id) {{ id }} }}", id=drawn["project"])
        assert (await _get(ada, drawn["text"]["url"])).status_code == status
    remove = "mutation ($p: ID!, $a: ID!) { deleteAsset(projectId: $p, id: $a) }"
    await ada.ask(remove, p=drawn["project"], a=drawn["text"]["id"])
    assert _code(await _get(ada, drawn["text"]["url"])) == (404, "NOT_FOUND")


@pytest.mark.slow
async def test_a_preview_has_a_url_of_its_own(ada: Client, drawn: dict[str, Any]) -> None:
    made = await _upload(ada, drawn["project"], picture(size=(800, 400)))
    assert drawn["svg"]["previews"] == {}
    assert set(made["previews"]) == {"256", "1024"}
    shown = await _get(ada, made["previews"]["256"])
    assert shown.headers["content-type"] == "image/webp"
    with Image.open(io.BytesIO(shown.content)) as small:
        assert small.size == (256, 128)
    known = await _get(ada, made["previews"]["256"], **{"If-None-Match": shown.headers["etag"]})
    assert (known.status_code, known.content) == (304, b"")
    query = "query ($p: ID!) { projectAssets(projectId: $p) { nodes { id previewUrl(side: 1024) } } }"
    nodes = (await ada.ask(query, p=drawn["project"]))["projectAssets"]["nodes"]
    urls = {node["id"]: node["previewUrl"] for node in nodes}
    assert urls[drawn["svg"]["id"]] is None
    assert (await _get(ada, urls[made["id"]])).headers["content-type"] == "image/webp"

    key = {"Authorization": f"Bearer {ada.token}"}
    path = f"/v1/projects/{drawn['project']}/assets/{made['id']}"
    assert (await _get(ada, f"{path}?preview=256", **key)).content == shown.content
    assert _code(await _get(ada, f"{path}?preview=300", **key)) == (422, "INVALID")
    kept = await _get(ada, f"{path}?sha256={made['sha256']}", **key)
    assert kept.headers["cache-control"] == "private, max-age=31536000, immutable"
    assert _code(await _get(ada, f"{path}?sha256={'0' * 64}", **key)) == (404, "NOT_FOUND")


async def test_requests_by_a_url_leave_its_user_room(
    ada: Client, drawn: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ximler.http.authentication._MAX_OPEN", 1)
    authorization = f"Bearer {ada.token}"
    found = await asyncio.gather(
        *(_get(ada, drawn["text"]["url"]) for _ in range(12)),
        _get(ada, f"/v1/projects/{drawn['project']}/assets", Authorization=authorization),
    )
    assert {each.status_code for each in found[:-1]} == {200, 429}
    assert found[-1].status_code == 200
