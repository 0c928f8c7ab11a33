"""Assets of projects over REST."""

import hashlib
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from gridfs.asynchronous import AsyncGridFSBucket
from tests.serving import Client

from ximler.database import Database

PNG = b"\x89PNG\r\n\x1a\n" + bytes(20)


async def _project(client: Client) -> str:
    made = await client.create("p")
    project_id: str = made["createProject"]["id"]
    return f"/v1/projects/{project_id}"


async def _send(client: Client, method: str, path: str, status: int = 200, **given: Any) -> httpx.Response:
    headers = {"Authorization": f"Bearer {client.token}", **given.pop("headers", {})}
    response = await client.http.request(method, path, headers=headers, **given)
    assert response.status_code == status, response.text
    return response


async def _upload(client: Client, project: str, content: Any, name: str = "file") -> str:
    made = await _send(client, "POST", f"{project}/assets", 201, content=content, params={"name": name})
    return made.headers["location"]


async def _size(client: Client, project: str) -> int:
    query = "query ($id: ID!) { project(id: $id) { storageSize } }"
    size: int = (await client.ask(query, id=project.rsplit("/", 1)[-1]))["project"]["storageSize"]
    return size


@pytest.mark.slow
async def test_the_life_of_an_asset(ada: Client) -> None:
    bob = await Client(ada.app, address="192.0.2.2").join("bob@example.com")
    project = await _project(ada)
    before = await _size(ada, project)
    made = await _send(ada, "POST", f"{project}/assets?name=dot.txt", 201, content=PNG)
    shown = made.json()
    assert shown.pop("url").startswith(f"/v1/assets/{shown['id']}?token=")
    assert shown.pop("urlExpiresAt") > shown["createdAt"]
    assert set(shown.pop("previews")) == {"256", "1024"}
    assert shown | {"id": "", "createdAt": ""} == {
        "id": "",
        "name": "dot.txt",
        "contentType": "image/png",
        "sizeBytes": len(PNG),
        "sha256": hashlib.sha256(PNG).hexdigest(),
        "createdAt": "",
    }
    assert await _size(ada, project) == before + len(PNG)
    path = made.headers["location"]
    got = await _send(ada, "GET", path)
    assert got.content == PNG
    assert got.headers["content-type"] == "image/png"
    assert got.headers["content-disposition"] == "inline; filename=\"dot.txt\"; filename*=UTF-8''dot.txt"
    assert got.headers["x-content-type-options"] == "nosniff"
    head = await _send(ada, "HEAD", path)
    assert (head.content, head.headers["content-length"]) == (b"", str(len(PNG)))
    known = await _send(ada, "GET", path, 304, headers={"If-None-Match": got.headers["etag"]})
    assert known.content == b""

    second = await _upload(ada, project, b"hello")
    page = (await _send(ada, "GET", f"{project}/assets?first=1")).json()
    assert page["assets"][0]["id"] == second.rsplit("/", 1)[-1]
    rest = (await _send(ada, "GET", f"{project}/assets?after={page['next']}")).json()
    assert (rest["assets"][0].items() >= shown.items(), rest["next"]) == (True, None)

    for method in ("GET", "HEAD", "DELETE"):
        await _send(bob, method, path, 404)
    await _send(bob, "POST", f"{project}/assets", 404, content=PNG)
    await _send(bob, "GET", f"{project}/assets", 404)
    await _send(ada, "DELETE", path, 204)
    await _send(ada, "GET", path, 404)
    assert await _size(ada, project) == before + 5


@pytest.mark.slow
@pytest.mark.parametrize(
    ("asked", "status", "content", "said"),
    [
        ({}, 200, b"0123456789", None),
        ({"Range": "bytes=2-4"}, 206, b"234", "bytes 2-4/10"),
        ({"Range": "bytes=-1000"}, 206, b"0123456789", "bytes 0-9/10"),
        ({"Range": "bytes=-3"}, 206, b"789", "bytes 7-9/10"),
        ({"Range": "bytes=5-4"}, 200, b"0123456789", None),
        ({"Range": "bytes=0-1,3-4"}, 200, b"0123456789", None),
        ({"Range": "bytes=8-99"}, 206, b"89", "bytes 8-9/10"),
        ({"Range": "bytes=10-"}, 416, None, "bytes */10"),
        ({"Range": "bytes=-0"}, 416, None, "bytes */10"),
        ({"Range": "bytes=2-4", "If-Range": "TAG"}, 206, b"234", "bytes 2-4/10"),
        ({"Range": "bytes=2-4", "If-Range": "W/TAG"}, 200, b"0123456789", None),
        ({"Range": "bytes=2-4", "If-Range": "Wed, 21 Oct 2015 07:28:00 GMT"}, 200, b"0123456789", None),
    ],
)
async def test_a_part_of_an_asset_is_downloaded(
    ada: Client, asked: dict[str, str], status: int, content: bytes | None, said: str | None
) -> None:
    path = await _upload(ada, await _project(ada), b"0123456789")
    tag = f'"{hashlib.sha256(b"0123456789").hexdigest()}"'
    headers = {name: value.replace("TAG", tag) for name, value in asked.items()}
    got = await _send(ada, "GET", path, status, headers=headers)
    if content is not None:
        assert got.content == content
        assert got.headers["content-length"] == str(len(content))
    assert got.headers.get("content-range") == said


async def test_an_empty_file_and_one_of_many_chunks(ada: Client, database: Database) -> None:
    project = await _project(ada)
    empty = await _upload(ada, project, b"")
    got = await _send(ada, "GET", empty, headers={"Range": "bytes=0-"})
    assert (got.content, got.headers["content-length"]) == (b"", "0")
    content = bytes(range(256)) * 12_000

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(content), 70_000):
            yield content[start : start + 70_000]

    large = await _upload(ada, project, pieces())
    assert (await _send(ada, "GET", large)).content == content
    part = await _send(ada, "GET", large, 206, headers={"Range": "bytes=261100-600000"})
    assert part.content == content[261_100:600_001]
    files = [file async for file in AsyncGridFSBucket(database.raw, "assets").find({"length": len(content)})]
    assert await files[-1].read() == content  # as any driver reads it


@pytest.mark.slow
@pytest.mark.parametrize(
    ("content", "kind", "shown"),
    [
        (b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>", "image/svg+xml", "attachment"),
        (
            b"<?xml version='1.0'?><!-- x --><a:svg xmlns:a='http://www.w3.org/2000/svg'/>",
            "image/svg+xml",
            "attachment",
        ),
        (b"  <!DOCTYPE html><title>x</title>", "text/html; charset=utf-8", "attachment"),
        (b"<script>alert(1)</script>", "text/html; charset=utf-8", "attachment"),
        (b"%PDF-1.7\n", "application/pdf", "attachment"),
        (b"\x00\x01\x02", "application/octet-stream", "attachment"),
        (b"GIF89a<script>alert(1)</script>", "image/gif", "inline"),
        (b'{"a": 1}\n', "application/json", "inline"),
        ("Grüße".encode(), "text/plain; charset=utf-8", "inline"),
    ],
)
async def test_what_a_file_is_comes_from_its_content(ada: Client, content: bytes, kind: str, shown: str) -> None:
    path = await _upload(ada, await _project(ada), content, "picture.png")
    got = await _send(ada, "GET", path)
    assert got.headers["content-type"] == kind
    assert got.headers["content-disposition"].split(";")[0] == shown
    assert got.headers["content-security-policy"] == "sandbox; default-src 'none'"
    assert got.headers["x-content-type-options"] == "nosniff"


@pytest.mark.slow
async def test_a_name_injects_no_header(ada: Client) -> None:
    project = await _project(ada)
    path = await _upload(ada, project, b"x", '报告🚀"a"\r\nX: y.txt')
    got = await _send(ada, "GET", path)
    assert "x" not in got.headers
    assert got.headers["content-disposition"] == (
        "inline; filename=\"___ a_  X: y.txt\"; filename*=UTF-8''%E6%8A%A5%E5%91%8A%F0%9F%9A%80%22a%22%20%20X%3A%20y.txt"
    ).replace("___ a_", "____a_")
    headers = {"Content-Disposition": "attachment; filename=\"a.txt\"; filename*=UTF-8''%E6%8A%A5.txt"}
    made = await _send(ada, "POST", f"{project}/assets", 201, content=b"y", headers=headers)
    assert made.json()["name"] == "报.txt"
    made = await _send(ada, "POST", f"{project}/assets?name=..%2F..%2Fetc%2Fpasswd", 201, content=b"y")
    assert made.json()["name"] == "passwd"


@pytest.mark.slow
async def test_a_form_with_a_file_is_an_upload(ada: Client, database: Database) -> None:
    project = await _project(ada)
    content = bytes(range(256)) * 2000
    form = {"files": {"file": ("a.bin", content), "other": ("b.bin", b"b")}, "data": {"note": "x"}}
    made = await _send(ada, "POST", f"{project}/assets", 201, **form)
    assert (made.json()["name"], made.json()["sizeBytes"]) == ("a.bin", len(content))
    assert (await _send(ada, "GET", made.headers["location"])).content == content
    size = await _size(ada, project)
    await _send(ada, "POST", f"{project}/assets", 422, files={"note": (None, "x")})
    cut = {"content": b'--b\r\nContent-Disposition: form-data; name="f"; filename="f"\r\n\r\n' + bytes(3_000_000)}
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    await _send(ada, "POST", f"{project}/assets", 400, headers=headers, **cut)
    await _send(ada, "POST", f"{project}/assets", 400, headers={"Content-Type": "multipart/form-data"}, content=b"x")
    assert await _size(ada, project) == size
    assert await database.raw["assets.chunks"].distinct("files_id") == [
        file["_id"] async for file in database.raw["assets.files"].find()
    ]


async def test_a_client_that_leaves_has_stored_nothing(ada: Client, database: Database) -> None:
    project = await _project(ada)
    before = await _size(ada, project)
    sent = iter([{"type": "http.request", "body": bytes(6_000_000), "more_body": True}, {"type": "http.disconnect"}])
    answered: list[Any] = []

    async def receive() -> Any:
        return next(sent)

    async def send(message: Any) -> None:
        answered.append(message)

    headers = [(b"host", b"x"), (b"authorization", f"Bearer {ada.token}".encode()), (b"content-length", b"10000000")]
    scope = {
        "type": "http", "method": "POST", "path": f"{project}/assets", "raw_path": f"{project}/assets".encode(),
        "query_string": b"", "headers": headers, "client": ("192.0.2.1", 1), "server": ("x", 80), "scheme": "http",
        "http_version": "1.1", "root_path": "", "asgi": {"version": "3.0"}, "state": {},
    }  # fmt: skip
    await ada.app(scope, receive, send)  # type: ignore[arg-type]  # a scope by hand
    assert answered[0]["status"] == 499
    assert await _size(ada, project) == before
    assert await database.raw["assetfiles"].count_documents({}) == 0


@pytest.mark.slow
async def test_assets_over_graphql(ada: Client) -> None:
    project = await _project(ada)
    path = await _upload(ada, project, PNG, "dot.png")
    asset, owner = path.rsplit("/", 1)[-1], project.rsplit("/", 1)[-1]
    query = "query ($p: ID!) { projectAssets(projectId: $p) { nodes { id name contentType sizeBytes sha256 } } }"
    shown = (await ada.ask(query, p=owner))["projectAssets"]["nodes"]
    assert shown == [
        {
            "id": asset,
            "name": "dot.png",
            "contentType": "image/png",
            "sizeBytes": len(PNG),
            "sha256": hashlib.sha256(PNG).hexdigest(),
        }
    ]
    delete = "mutation ($p: ID!, $a: ID!) { deleteAsset(projectId: $p, id: $a) }"
    assert (await ada.ask(delete, p=owner, a=asset))["deleteAsset"]
    assert (await ada.ask(delete, p=owner, a=asset)).code == "NOT_FOUND"
