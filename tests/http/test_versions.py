"""Versions of a canvas over REST and GraphQL."""

from typing import Any

import pytest
from tests.serving import Client

from ximler.database import Database

pytestmark = pytest.mark.slow


async def _project(client: Client) -> str:
    made = await client.create("p", canvasData={"elements": [{"id": "a", "x": 1}]})
    project_id: str = made["createProject"]["id"]
    return project_id


async def _send(client: Client, method: str, path: str, status: int = 200, **given: Any) -> Any:
    headers = {"Authorization": f"Bearer {client.token}"}
    response = await client.http.request(method, f"/v1/projects/{path}", headers=headers, **given)
    assert response.status_code == status, response.text
    return response.json() if response.content else None


async def test_the_life_of_a_version(ada: Client) -> None:
    project = await _project(ada)
    first = await _send(ada, "POST", f"{project}/versions", 201, json={"name": "first"})
    assert first["pinned"]
    await _send(ada, "PUT", f"{project}/canvas?base=0", json={"elements": []})
    second = await _send(ada, "POST", f"{project}/versions", 201, json={})

    page = await _send(ada, "GET", f"{project}/versions?first=1")
    assert page["versions"] == [second]
    rest = await _send(ada, "GET", f"{project}/versions?after={page['next']}")
    assert (rest["versions"], rest["next"]) == ([first], None)

    one = f"{project}/versions/{first['id']}"
    assert await _send(ada, "GET", f"{one}/canvas") == {"elements": [{"id": "a", "x": 1}]}
    removed = [{"op": "remove", "path": "/elements/0"}]
    assert await _send(ada, "GET", f"{one}/changes") == removed
    assert await _send(ada, "GET", f"{one}/changes?to={second['id']}") == removed

    changed = await _send(ada, "PATCH", one, json={"pinned": False})
    assert changed == first | {"pinned": False}
    assert await _send(ada, "PATCH", one, json={"name": None}) == changed | {"name": None}
    assert await _send(ada, "GET", one) == changed | {"name": None}

    await _send(ada, "POST", f"{one}/restore?base=0", 409)
    assert await _send(ada, "POST", f"{one}/restore?base=1") == {"revision": 2}
    assert await _send(ada, "GET", f"{project}/canvas") == {"elements": [{"id": "a", "x": 1}]}
    await _send(ada, "DELETE", one, 204)
    await _send(ada, "GET", one, 404)


async def test_a_version_is_kept_and_restored_once_for_an_idempotency_key(ada: Client) -> None:
    project = await _project(ada)
    headers = {"Authorization": f"Bearer {ada.token}", "Idempotency-Key": "once"}
    sent = [await ada.http.post(f"/v1/projects/{project}/versions", headers=headers, json={}) for _ in range(2)]
    assert [each.status_code for each in sent] == [201, 201]
    assert sent[0].json() == sent[1].json()
    page = await _send(ada, "GET", f"{project}/versions")
    assert page["versions"] == [sent[0].json()]
    path = f"/v1/projects/{project}/versions/{sent[0].json()['id']}/restore"
    headers["Idempotency-Key"] = "again"
    assert [(await ada.http.post(path, headers=headers)).json() for _ in range(2)] == 2 * [{"revision": 1}]


async def test_an_answer_has_a_bounded_size_of_canvases(ada: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    project = await _project(ada)
    make = "mutation ($p: ID!) { createProjectVersion(projectId: $p) { id } }"
    await ada.ask(make, p=project)
    await _send(ada, "PUT", f"{project}/canvas?base=0", json={"elements": []})
    await ada.ask(make, p=project)
    monkeypatch.setattr("ximler.graphql.context._MAX_CANVASES", 10)
    some = "query ($p: ID!, $n: Int!) { projectVersions(projectId: $p, first: $n) { nodes { canvasData } } }"
    assert (await ada.ask(some, p=project, n=1)).errors == []
    refused = await ada.ask(some, p=project, n=2)
    assert list(refused.fields) == ["canvasData"]


async def test_the_assets_of_an_earlier_releases_versions_are_unknown(ada: Client, database: Database) -> None:
    project = await _project(ada)
    await ada.ask("mutation ($p: ID!) { createProjectVersion(projectId: $p) { id } }", p=project)
    asked = "query ($p: ID!) { projectVersions(projectId: $p) { nodes { assets } } }"
    assert (await ada.ask(asked, p=project))["projectVersions"]["nodes"] == [{"assets": []}]
    await database.raw.canvasversions.update_many({}, {"$unset": {"assets": ""}})
    assert (await ada.ask(asked, p=project))["projectVersions"]["nodes"] == [{"assets": None}]


async def test_the_same_over_graphql(ada: Client) -> None:
    project = await _project(ada)
    fields = "id revision name pinned automatic sizeBytes storedBytes createdAt canvasData changes"
    made = await ada.ask(
        f'mutation ($p: ID!) {{ createProjectVersion(projectId: $p, name: "first") {{ {fields} }} }}', p=project
    )
    first = made["createProjectVersion"]
    assert first["canvasData"] == {"elements": [{"id": "a", "x": 1}]}
    assert first["changes"] == []
    await _send(ada, "PUT", f"{project}/canvas?base=0", json={"elements": []})
    restore = "mutation ($p: ID!, $v: ID!, $b: Int) { restoreProjectVersion(projectId: $p, id: $v, base: $b) { canvasRevision canvasData } }"  # noqa: E501 (one line reads best)
    conflict = await ada.ask(restore, p=project, v=first["id"], b=0)
    assert conflict.errors[0]["extensions"]["code"] == "REVISION_CONFLICT"
    restored = await ada.ask(restore, p=project, v=first["id"], b=1)
    assert restored["restoreProjectVersion"] == {"canvasRevision": 2, "canvasData": first["canvasData"]}
    page = await ada.ask(
        "query ($p: ID!) { projectVersions(projectId: $p) { nodes { name automatic canvasData } } }", p=project
    )
    assert page["projectVersions"]["nodes"] == [
        {"name": None, "automatic": True, "canvasData": {"elements": []}},
        {"name": "first", "automatic": False, "canvasData": first["canvasData"]},
    ]
    of = {"p": project, "v": first["id"]}
    update = "mutation ($p: ID!, $v: ID!) { updateProjectVersion(projectId: $p, id: $v, input: {name: null, pinned: false}) { name pinned } }"  # noqa: E501 (as above)
    assert (await ada.ask(update, **of))["updateProjectVersion"] == {"name": None, "pinned": False}
    assert await ada.ask("mutation ($p: ID!, $v: ID!) { deleteProjectVersion(projectId: $p, id: $v) }", **of)
    gone = await ada.ask("query ($p: ID!, $v: ID!) { projectVersion(projectId: $p, id: $v) { id } }", **of)
    assert gone.errors[0]["extensions"]["code"] == "NOT_FOUND"
