"""Shared projects over HTTP: what a public link reads, and streams that end with the access."""

import asyncio
from typing import Any

import httpx
import pytest
from tests.http.test_canvas_changes import Editor, editor
from tests.serving import Client

from ximler.database import Database

__all__ = ["editor"]  # a fixture

SHARE = "mutation ($p: ID!, $e: String!, $r: ShareRole!) { shareProject(projectId: $p, email: $e, role: $r) { email role } }"
UNSHARE = "mutation ($p: ID!, $e: String!) { unshareProject(projectId: $p, email: $e) }"


async def read(client: Client, token: str | None, path: str = "", **headers: str) -> httpx.Response:
    sent = {"Authorization": f"Bearer {token}"} if token else {}
    return await client.http.get(f"/v1/shared{path}", headers={**sent, **headers})


async def test_a_link_reads_its_project_and_nothing_else(ada: Client) -> None:
    made = await ada.create("Plan", canvasData={"elements": [{"id": "a"}]})
    project = made["createProject"]["id"]
    mine = {"Authorization": f"Bearer {ada.token}"}
    sent = await ada.http.post(f"/v1/projects/{project}/assets?name=a.txt", content=b"hello", headers=mine)
    answer = await ada.ask(
        "mutation ($p: ID!) { createProjectLink(projectId: $p) { token link { id expiresAt } } }", p=project
    )
    token = answer["createProjectLink"]["token"]
    shown = (await read(ada, token)).json()
    assert (shown["id"], shown["name"], shown["canvasRevision"]) == (project, "Plan", 0)
    drawn = await read(ada, token, "/canvas")
    assert drawn.json() == {"elements": [{"id": "a"}]}
    assert (await read(ada, token, "/canvas", **{"If-None-Match": drawn.headers["etag"]})).status_code == 304
    (listed,) = (await read(ada, token, "/assets")).json()["assets"]
    part = await read(ada, token, f"/assets/{listed['id']}", Range="bytes=1-2")
    assert (listed["id"], part.status_code, part.content) == (sent.json()["id"], 206, b"el")
    kept = await read(ada, token, f"/assets/{listed['id']}?sha256={listed['sha256']}")
    assert (kept.content, kept.headers["cache-control"][-9:]) == (b"hello", "immutable")
    for query, status in ((f"sha256={'0' * 64}", 404), ("preview=256", 422), ("preview=7", 422)):
        assert (await read(ada, token, f"/assets/{listed['id']}?{query}")).status_code == status, query

    linked = {"Authorization": f"Bearer {token}"}
    for method, path in (
        ("GET", f"/v1/projects/{project}/canvas"),
        ("PUT", f"/v1/projects/{project}/canvas"),
        ("GET", f"/v1/projects/{project}/versions"),
        ("DELETE", f"/v1/projects/{project}/assets/{listed['id']}"),
        ("POST", "/graphql"),
    ):
        refused = await ada.http.request(method, path, headers=linked, json={"query": "{ projects { nodes { id } } }"})
        assert (refused.status_code, "/v1/shared" in refused.text) == (401, True), path
    for method in ("PUT", "POST", "PATCH", "DELETE"):
        assert (await ada.http.request(method, "/v1/shared/canvas", headers=linked)).status_code == 405
    assert (await read(ada, None)).status_code == 401
    assert (await read(ada, ada.token)).status_code == 401

    link = answer["createProjectLink"]["link"]["id"]
    await ada.ask("mutation ($p: ID!, $l: ID!) { revokeProjectLink(projectId: $p, id: $l) }", p=project, l=link)
    for path in ("", "/canvas", "/assets", f"/assets/{listed['id']}"):
        assert (await read(ada, token, path)).status_code == 404


async def test_locking_the_owner_ends_the_streams_of_members(editor: Editor, database: Database) -> None:
    bob = await Client(editor.client.app, address="192.0.2.2").join("bob@example.com")
    await editor.client.ask(SHARE, p=editor.project, e="bob@example.com", r="READER")
    async with editor.stream(since=0, token=bob.token) as cut:
        await editor.save(set={"a": {"x": 1}})
        await cut.until(lambda: len(cut.events) == 1)
        assert cut.answering is not None
        ada = await database.raw["users"].find_one({"email": "ada@example.com"})
        assert ada is not None
        locked = {"$set": {"lockedAt": database.clock.now()}}
        await database.raw["credentials"].update_one({"_id": ada["_id"]}, locked, upsert=True)
        async with asyncio.timeout(5):  # a second, beside busy processors
            await asyncio.wait([cut.answering])
        assert cut.answering.done()
    await bob.http.aclose()


async def test_revoking_a_share_ends_the_streams_of_that_person_within_a_second(editor: Editor) -> None:
    ada, project = editor.client, editor.project
    people = [await Client(ada.app, address=f"192.0.2.{n}").join(f"p{n}@example.com") for n in (2, 3)]
    for n in (2, 3):
        shared = await ada.ask(SHARE, p=project, e=f"p{n}@example.com", r="READER")
        assert shared["shareProject"]["role"] == "READER"
    out, stays = people
    async with editor.stream(since=0, token=out.token) as cut, editor.stream(since=0, token=stays.token) as kept:
        await editor.save(set={"a": {"x": 1}})
        await cut.until(lambda: len(cut.events) == 1)
        assert cut.answering is not None
        assert (await ada.ask(UNSHARE, p=project, e="p2@example.com"))["unshareProject"] is True
        async with asyncio.timeout(1):
            await asyncio.wait([cut.answering])
        await editor.save(set={"a": {"x": 2}})
        await kept.until(lambda: len(kept.events) == 2)
    assert len(cut.events) == 1
    for person, status in ((out, 404), (stays, 200)):
        headers = {"Authorization": f"Bearer {person.token}"}
        assert (await person.http.get(editor.path, headers=headers)).status_code == status
        await person.http.aclose()


@pytest.mark.parametrize("role", ["READER", "EDITOR"])
async def test_members_see_their_role_and_the_owner(ada: Client, role: str) -> None:
    bob = await Client(ada.app, address="192.0.2.2").join("bob@example.com")
    made = await ada.create("Plan", canvasData={"a": 1}, settings={"b": 2})
    project = made["createProject"]["id"]
    await ada.ask(SHARE, p=project, e="bob@example.com", r=role)
    ask: Any = (
        "{ sharedProjects { nodes { id name role sharedBy canvasData settings starred } } projects { nodes { id } } }"
    )
    answer = await bob.ask(ask)
    assert answer["sharedProjects"]["nodes"] == [
        {
            "id": project, "name": "Plan", "role": role, "sharedBy": "Ada", "canvasData": {"a": 1}, "settings": {"b": 2},
            "starred": False,
        }
    ]  # fmt: skip
    assert answer["projects"]["nodes"] == []
    own = await ada.ask("query ($p: ID!) { project(id: $p) { role sharedBy } }", p=project)
    assert own["project"] == {"role": "OWNER", "sharedBy": None}
    await bob.http.aclose()
