"""Export and import of projects over REST."""

import io
import zipfile
from typing import Any

import httpx
import pytest
from bson import ObjectId
from tests.graphql.test_scopes import key_of
from tests.serving import Client


async def _send(client: Client, method: str, path: str, status: int = 200, **given: Any) -> httpx.Response:
    headers = {"Authorization": f"Bearer {client.token}", **given.pop("headers", {})}
    response = await client.http.request(method, path, headers=headers, **given)
    assert response.status_code == status, response.text
    return response


@pytest.mark.slow
async def test_a_project_travels_as_an_archive_and_as_a_file(ada: Client) -> None:
    drawing = b'{ "elements": [{"id": "a"}] }'
    named = {"Content-Disposition": 'attachment; filename="Plan 7.excalidraw"'}
    made = (await _send(ada, "POST", "/v1/projects/import", 201, content=drawing, headers=named)).json()
    assert made["name"] == "Plan 7"
    project = f"/v1/projects/{made['id']}"
    await _send(ada, "POST", f"{project}/assets?name=x.txt", 201, content=b"x")
    file = await _send(ada, "GET", f"{project}/export?format=file")
    assert (file.content, file.headers["content-type"]) == (drawing, "application/octet-stream")

    head = await _send(ada, "HEAD", f"{project}/export")
    assert (head.content, head.headers["content-type"]) == (b"", "application/zip")
    archive = (await _send(ada, "GET", f"{project}/export?versions=false")).content
    with zipfile.ZipFile(io.BytesIO(archive)) as opened:
        assert [name.split("/")[0] for name in opened.namelist()] == ["canvas.json", "assets", "project.json"]
    copy = (await _send(ada, "POST", "/v1/projects/import?name=Copy", 201, files={"file": ("a.zip", archive)})).json()
    assert copy["name"] == "Copy"
    assert len((await _send(ada, "GET", f"/v1/projects/{copy['id']}/assets")).json()["assets"]) == 1

    asked = await ada.ask("query ($p: ID!) { project(id: $p) { exportUrl thumbnailUrl } }", p=made["id"])
    url = asked["project"]["exportUrl"]
    by_url = await ada.http.get(f"{url}&versions=false")
    assert by_url.status_code == 200, by_url.text
    with zipfile.ZipFile(io.BytesIO(by_url.content)) as opened:
        assert "canvas.json" in opened.namelist()
    assert by_url.headers["content-disposition"].startswith('attachment; filename="Plan 7.zip"')
    assert (await ada.http.get(f"{url}&format=file")).content == drawing
    token = asked["project"]["thumbnailUrl"].partition("?token=")[2]
    for wrong, status in (
        (f"/v1/exports/{made['id']}", 401),
        (f"/v1/exports/{made['id']}?token={token}", 403),  # of another purpose
        (url.replace(made["id"], copy["id"]), 403),
    ):
        assert (await ada.http.get(wrong)).status_code == status

    bob = await Client(ada.app, address="192.0.2.2").join("bob@example.com")
    await _send(bob, "GET", f"{project}/export", 404)
    await ada.ask("mutation ($p: ID!) { deleteProject(id: $p) { id } }", p=made["id"])
    assert (await ada.http.get(url)).status_code == 404
    await ada.ask("mutation ($p: ID!) { restoreProject(id: $p) { id } }", p=made["id"])
    wrong = await _send(ada, "POST", "/v1/projects/import", 422, content=archive[:-20])
    assert "no zip archive" in wrong.json()["detail"]
    wrong = await _send(ada, "POST", "/v1/projects/import", 422, content=b'{"a": 1, "a": 2}')
    assert "/a" in wrong.json()["detail"]
    assert (await _send(ada, "GET", f"{project}/export?format=pdf", 422)).json()["code"] == "INVALID"


@pytest.mark.slow
async def test_exports_by_url_leave_the_users_own_exports_their_place(ada: Client) -> None:
    made = (await ada.create("Plan"))["createProject"]["id"]
    url = (await ada.ask("query ($p: ID!) { project(id: $p) { exportUrl } }", p=made))["project"]["exportUrl"]
    user_id = ObjectId((await ada.ask("{ me { id } }"))["me"]["id"])
    authentication = ada.app._app.state.authentication  # type: ignore[attr-defined]  # the application inside `Requests`
    own = (f"/v1/projects/{made}/export", "/v1/export")
    for place, refused in (("export by URL", (url,)), ("export", own)):
        under_way: dict[str, Any] = {}
        authentication.enter(under_way, "a slow reader")
        authentication.enter_alone(under_way, place, user_id)
        for path in (url, *own):
            await _send(ada, "GET", path, 429 if path in refused else 200)
        under_way["leave"]()


@pytest.mark.slow
async def test_a_key_exports_projects_by_the_route_and_gets_no_url(ada: Client) -> None:
    """The URL would be valid after the key is revoked."""
    made = (await ada.create("Plan"))["createProject"]["id"]
    key = await key_of(ada, "projects:read")
    answer = await key.ask("query ($p: ID!) { project(id: $p) { exportUrl } }", p=made)
    assert answer.code == "FORBIDDEN"
    path = f"/v1/projects/{made}/export"
    assert f"GET {path}" in answer.errors[0]["message"]
    await _send(key, "GET", path)
    assert (await key.ask("query ($p: ID!) { project(id: $p) { thumbnailUrl } }", p=made))["project"]["thumbnailUrl"]
