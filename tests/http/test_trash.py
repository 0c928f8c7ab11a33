"""Trash, people and links of a project over REST."""

from typing import Any

from tests.serving import Client


async def _send(
    client: Client, method: str, path: str, status: int = 200, *, key: str | None = None, **given: Any
) -> Any:
    headers = {"Authorization": f"Bearer {client.token}", **({"Idempotency-Key": key} if key else {})}
    response = await client.http.request(method, f"/v1{path}", headers=headers, **given)
    assert response.status_code == status, response.text
    return response.json() if response.content else None


async def test_a_project_is_discarded_restored_and_deleted_for_good(ada: Client) -> None:
    bob = await Client(ada.app, address="192.0.2.2").join("bob@example.com")
    first, second = [(await ada.create(name))["createProject"]["id"] for name in ("One", "Two")]
    await _send(bob, "DELETE", f"/projects/{first}", 404)
    for project in (first, second):
        await _send(ada, "DELETE", f"/projects/{project}", 204)
    await _send(ada, "DELETE", f"/projects/{first}", 404)
    page = await _send(ada, "GET", "/trash?first=1")
    assert [each["name"] for each in page["projects"]] == ["Two"]
    rest = await _send(ada, "GET", f"/trash?after={page['next']}")
    assert ([each["id"] for each in rest["projects"]], rest["next"]) == ([first], None)
    assert (await _send(bob, "GET", "/trash"))["projects"] == []
    for method, path in (("POST", f"/trash/{first}/restore"), ("DELETE", f"/trash/{first}")):
        await _send(bob, method, path, 404)
    assert (await _send(bob, "DELETE", "/trash"))["purged"] == 0
    assert (await _send(ada, "POST", f"/trash/{first}/restore"))["name"] == "One"
    await _send(ada, "DELETE", f"/trash/{first}", 404)  # no longer deleted
    await _send(ada, "DELETE", f"/projects/{first}", 204)
    await _send(ada, "DELETE", f"/trash/{first}", 204)
    assert (await _send(ada, "DELETE", "/trash")) == {"purged": 1}
    assert (await _send(ada, "GET", "/trash"))["projects"] == []


async def test_people_and_links_are_listed_and_revoked(ada: Client) -> None:
    bob = await Client(ada.app, address="192.0.2.2").join("bob@example.com")
    project = f"/projects/{(await ada.create())['createProject']['id']}"
    given = {"email": "Bob@example.com", "role": "EDITOR"}
    await _send(bob, "PUT", f"{project}/shares", 404, json=given | {"email": "eve@example.com"})
    assert (await _send(ada, "PUT", f"{project}/shares", json=given))["email"] == "bob@example.com"
    await _send(ada, "PUT", f"{project}/shares", json=given | {"role": "READER"})
    await _send(ada, "PUT", f"{project}/shares", 422, json=given | {"role": "OWNER"})
    assert [each["role"] for each in (await _send(ada, "GET", f"{project}/shares"))["shares"]] == ["READER"]
    await _send(bob, "GET", f"{project}/canvas")
    # A member neither sees nor changes who else has access, and does not delete the project.
    for method, path, body in (
        ("GET", f"{project}/shares", None),
        ("POST", f"{project}/shares/revoke", {"email": "bob@example.com"}),
        ("GET", f"{project}/links", None),
        ("POST", f"{project}/links", {}),
        ("DELETE", project, None),
    ):
        await _send(bob, method, path, 404, json=body)
    made = await _send(ada, "POST", f"{project}/links", 201, key="a-key", json={})
    assert await _send(ada, "POST", f"{project}/links", 201, key="a-key", json={}) == made
    await _send(ada, "POST", f"{project}/links", 422, json={"expiresAt": "2001-01-01T00:00:00Z"})
    (link,) = (await _send(ada, "GET", f"{project}/links"))["links"]
    assert link == made["link"]
    await _send(bob, "DELETE", f"{project}/links/{link['id']}", 404)
    visit = {"Authorization": f"Bearer {made['token']}"}
    assert (await ada.http.get("/v1/shared", headers=visit)).status_code == 200
    await _send(ada, "DELETE", f"{project}/links/{link['id']}", 204)
    assert (await ada.http.get("/v1/shared", headers=visit)).status_code == 404
    await _send(ada, "POST", f"{project}/shares/revoke", 204, json={"email": "bob@example.com"})
    await _send(ada, "POST", f"{project}/shares/revoke", 404, json={"email": "bob@example.com"})
    await _send(bob, "GET", f"{project}/canvas", 404)

    asked = 'mutation { createApiKey(input: {name: "k", permissions: ["projects:read", "projects:write"]}) { secret } }'
    keyed = Client(ada.app, token=(await ada.ask(asked))["createApiKey"]["secret"])
    await _send(keyed, "GET", f"{project}/shares", 403)
    await _send(keyed, "POST", f"{project}/links", 403, json={})
    await _send(keyed, "DELETE", project, 204)
