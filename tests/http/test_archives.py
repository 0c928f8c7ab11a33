"""Export and import of projects over REST."""

import asyncio
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
async def test_a_key_exports_and_imports_projects_by_routes_and_gets_no_url(ada: Client) -> None:
    """The URL would be valid after the key is revoked."""
    made = (await ada.create("Plan"))["createProject"]["id"]
    key = await key_of(ada, "projects:read")
    writer = await key_of(ada, "projects:write")
    answer = await writer.ask("mutation { createProjectImport { url } }")
    assert answer.code == "FORBIDDEN"
    assert "POST /v1/projects/import" in answer.errors[0]["message"]
    answer = await key.ask("query ($p: ID!) { project(id: $p) { exportUrl } }", p=made)
    assert answer.code == "FORBIDDEN"
    path = f"/v1/projects/{made}/export"
    assert f"GET {path}" in answer.errors[0]["message"]
    await _send(key, "GET", path)
    assert (await key.ask("query ($p: ID!) { project(id: $p) { thumbnailUrl } }", p=made))["project"]["thumbnailUrl"]


@pytest.mark.slow
async def test_an_import_url_makes_one_project(ada: Client) -> None:
    ask = "mutation ($n: String) { createProjectImport(name: $n) { projectId url expiresAt } }"
    made, other = [(await ada.ask(ask, n=name))["createProjectImport"] for name in ("Übung &name=1", None)]
    drawing = b'{"elements": [{"id": "a"}]}'
    token = other["url"].partition("?token=")[2]
    for wrong, status in (
        (f"/v1/imports/{made['projectId']}", 401),
        (f"/v1/imports/{made['projectId']}?token={token}", 403),  # of another project
        (f"/v1/exports/{other['projectId']}?token={token}", 403),
    ):
        method = "GET" if "exports" in wrong else "PUT"
        assert (await ada.http.request(method, wrong, content=drawing)).status_code == status
    failed = await ada.http.put(made["url"], content=b"{")
    assert (failed.status_code, failed.json()["code"]) == (422, "INVALID")

    answers = await asyncio.gather(*(ada.http.put(made["url"], content=drawing) for _ in range(3)))
    assert sorted(each.status_code for each in answers) in ([201, 409, 409], [201, 409, 429], [201, 429, 429])
    again = await ada.http.put(made["url"], content=drawing)
    assert (again.status_code, made["projectId"] in again.json()["detail"]) == (409, True)
    found = await ada.ask("query ($p: ID!) { project(id: $p) { name canvasData exportUrl } }", p=made["projectId"])
    assert (found["project"]["name"], found["project"]["canvasData"]["elements"]) == ("Übung &name=1", [{"id": "a"}])

    await ada.ask("mutation ($p: ID!) { deleteProject(id: $p) { id } }", p=made["projectId"])
    assert (await ada.http.put(made["url"], content=drawing)).status_code == 409  # the one in the trash stays
    await ada.ask("mutation ($p: ID!) { restoreProject(id: $p) { id } }", p=made["projectId"])

    archive = (await ada.http.get(found["project"]["exportUrl"])).content
    copied = await ada.http.put(other["url"], content=archive)
    assert (copied.status_code, copied.json()) == (201, {"id": other["projectId"], "name": "Übung &name=1"})
