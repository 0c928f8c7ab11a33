"""An account can store little beyond its plan with each request, and a bounded amount in all.

Sessions make a bounded number of changes a day (`XIMLER_SESSION_DAILY`), so a bound for each bounds the sum.
"""

import secrets
from collections.abc import Awaitable, Callable
from datetime import timedelta

import httpx
import pytest
from tests.accounts.test_avatars import picture
from tests.contents import contents
from tests.serving import Client

from ximler.accounts import attempts, sessions
from ximler.apikeys import keys
from ximler.database import Database
from ximler.projects import assets, assets_previews

pytestmark = pytest.mark.slow

LONG = "ﷺ" * 100
DELETE = "mutation ($id: ID!) { deleteProject(id: $id) { id } }"
RESTORE = "mutation ($id: ID!) { restoreProject(id: $id) { id } }"
PURGE = "mutation ($id: ID!) { purgeProject(id: $id) }"
DUPLICATE = "mutation ($id: ID!) { duplicateProject(id: $id) { id } }"
VERSION = "mutation ($id: ID!, $name: String) { createProjectVersion(projectId: $id, name: $name) { id } }"
SETTINGS = "mutation ($id: ID!, $settings: JSON) { updateProject(id: $id, input: {settings: $settings}) { settings } }"
KEY = "mutation ($input: CreateApiKeyInput!) { createApiKey(input: $input) { key { id } } }"
REVOKE = "mutation ($id: ID!) { revokeApiKey(id: $id) { id } }"
LINK = "mutation ($id: ID!) { createProjectLink(projectId: $id) { link { id } } }"
UNLINK = "mutation ($id: ID!, $link: ID!) { revokeProjectLink(projectId: $id, id: $link) }"
REFRESH = "mutation { refreshSession { token } }"
STORED = "{ usage { resource used } }"
NETWORKS = [f"10.{n}.0.0/16" for n in range(50)]


async def rest(client: Client, method: str, path: str, body: bytes = b"", **headers: str) -> httpx.Response:
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    given["Authorization"] = f"Bearer {client.token}"
    return await client.http.request(method, path, content=body, headers=given)


async def fill_and_empty(ada: Client) -> int:
    made = await ada.create(settings={"a": "b" * 1000}, canvasData={"a": "b" * 1000})
    project = made["createProject"]["id"]
    for each in (DELETE, RESTORE, DELETE, PURGE):
        await ada.ask(each, id=project)
    return 5


async def delete_and_keep(ada: Client) -> int:
    made = await ada.create("x", description=LONG * 10)
    await ada.ask(DELETE, id=made["createProject"]["id"])
    return 2


async def answer_large(ada: Client, project: str) -> int:
    body = {"query": SETTINGS, "variables": {"id": project, "settings": {"a": secrets.token_hex(60_000)}}}
    headers = {"Authorization": f"Bearer {ada.token}", "Idempotency-Key": secrets.token_hex(8)}
    assert (await ada.http.post("/graphql", json=body, headers=headers)).status_code == 200
    return 1


async def name_versions(ada: Client, project: str) -> int:
    await ada.ask(VERSION, id=project, name=LONG)
    return 1


async def mint_and_revoke(ada: Client) -> int:
    made = await ada.ask(KEY, input={"name": LONG, "permissions": ["projects:read"], "allowedAddresses": NETWORKS})
    await ada.ask(REVOKE, id=made["createApiKey"]["key"]["id"])
    return 2


async def send_tiny_files(ada: Client, project: str) -> int:
    name = f'attachment; filename="{"n" * 250}"'
    body = secrets.token_bytes(8)
    assert (
        await rest(ada, "POST", f"/v1/projects/{project}/assets", body, Content_Disposition=name)
    ).status_code == 201
    return 1


async def begin_uploads(ada: Client, project: str) -> int:
    headers = {"Tus_Resumable": "1.0.0", "Upload_Length": "1", "Upload_Metadata": "filename eA=="}
    await rest(ada, "POST", f"/v1/projects/{project}/uploads", **headers)
    return 1


async def link_and_revoke(ada: Client, project: str) -> int:
    made = await ada.ask(LINK, id=project)
    await ada.ask(UNLINK, id=project, link=made["createProjectLink"]["link"]["id"])
    return 2


async def refresh(ada: Client) -> int:
    ada.token = (await ada.ask(REFRESH))["refreshSession"]["token"]
    return 1


async def test_a_request_of_an_account_stores_a_few_kilobytes_beyond_its_plan(ada: Client, database: Database) -> None:
    project = (await ada.create("p"))["createProject"]["id"]
    attacks: dict[str, Callable[[], Awaitable[int]]] = {
        "fill and empty": lambda: fill_and_empty(ada),
        "delete and keep": lambda: delete_and_keep(ada),
        "answer large": lambda: answer_large(ada, project),
        "name versions": lambda: name_versions(ada, project),
        "mint and revoke": lambda: mint_and_revoke(ada),
        "send tiny files": lambda: send_tiny_files(ada, project),
        "begin uploads": lambda: begin_uploads(ada, project),
        "link and revoke": lambda: link_and_revoke(ada, project),
        "refresh": lambda: refresh(ada),
    }
    unmetered = {}
    for name, attack in attacks.items():
        before, metered = await stored(database), await used(ada)
        requests = sum([await attack() for _ in range(5)])
        unmetered[name] = (await stored(database) - before - (await used(ada) - metered)) / requests
    assert {name: size for name, size in unmetered.items() if size > 8_000} == {}, unmetered


async def stored(database: Database) -> int:
    return sum(len(document) for documents in (await contents(database)).values() for document in documents)


async def used(ada: Client) -> int:
    (storage,) = (each["used"] for each in (await ada.ask(STORED))["usage"] if each["resource"] == "storage")
    return int(storage)


async def test_a_user_has_a_bounded_number_of_assets_in_copies(
    ada: Client, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(assets, "_MOST_OF_ALL", 6)
    monkeypatch.setattr(assets, "_BYTES_EACH", 10**12)
    project = (await ada.create("p"))["createProject"]["id"]
    for _ in range(3):
        await send_tiny_files(ada, project)
    archive = (await rest(ada, "GET", f"/v1/projects/{project}/export")).content
    copy = await ada.ask(DUPLICATE, id=project)
    await ada.ask(DELETE, id=copy["duplicateProject"]["id"])
    assert (await ada.ask(DUPLICATE, id=project)).code == "LIMIT_EXCEEDED"
    assert (await rest(ada, "POST", "/v1/projects/import", archive)).status_code == 429
    assert await database.raw["assets"].count_documents({}) == 6
    await ada.ask(PURGE, id=copy["duplicateProject"]["id"])
    assert (await rest(ada, "POST", "/v1/projects/import", archive)).status_code == 201


async def test_previews_of_a_user_are_bounded(ada: Client, database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assets_previews, "_MOST", 2)
    monkeypatch.setattr(assets_previews, "_TRIMMED", 2)
    project = (await ada.create("p"))["createProject"]["id"]
    for side in (10, 20, 30, 40, 50):
        sent = await rest(ada, "POST", f"/v1/projects/{project}/assets", picture("PNG", (side, side)))
        path = f"{sent.headers['location']}?preview=256"
        assert (await rest(ada, "GET", path)).status_code == 200
        assert await database.raw["assetpreviews"].count_documents({}) <= 4
    assert (await rest(ada, "GET", path)).status_code == 200


async def test_ended_keys_and_sessions_are_bounded(
    ada: Client, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keys, "_MAX_ENDED", 2)
    for _ in range(5):
        await mint_and_revoke(ada)
    listed = (await ada.ask("{ apiKeys { state createdAt } }"))["apiKeys"]
    assert [each["state"] for each in listed] == ["REVOKED"] * 3  # one more ended since the last was made
    monkeypatch.setattr(sessions, "MOST", 3)
    for _ in range(6):
        await ada.sign_in("ada@example.com")
    assert await database.raw["sessions"].count_documents({}) == 3
    assert (await ada.ask("{ me { id } }")).errors == []
    monkeypatch.setattr(attempts, "_SIGN_INS", 3)
    assert (await ada.sign_in("ada@example.com")).code == "TOO_MANY_ATTEMPTS"
    hour = {"$set": {"createdAt": database.clock.now() - timedelta(hours=1)}}
    await database.raw["sessions"].update_many({}, hour)
    assert (await ada.sign_in("ada@example.com")).errors == []
