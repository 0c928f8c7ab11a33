"""Resumable uploads of assets: tus 1.0."""

import asyncio
import base64
import hashlib
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from tests.serving import Client

from ximler.database import Database
from ximler.projects import assets_storage

CONTENT = bytes(range(256)) * 12_000  # 3 MB, more than one command stores
BYTES = {"Content-Type": "application/offset+octet-stream"}


async def _project(client: Client) -> str:
    return f"/v1/projects/{(await client.create('p'))['createProject']['id']}"


async def _send(client: Client, method: str, path: str, status: int, **given: Any) -> httpx.Response:
    headers = {"Authorization": f"Bearer {client.token}", "Tus-Resumable": "1.0.0", **given.pop("headers", {})}
    response = await client.http.request(method, path, headers=headers, **given)
    assert response.status_code == status, response.text
    return response


async def _create(client: Client, project: str, length: int | None = len(CONTENT), **headers: str) -> str:
    size = {"Upload-Defer-Length": "1"} if length is None else {"Upload-Length": str(length)}
    made = await _send(client, "POST", f"{project}/uploads", 201, headers=size | headers)
    return made.headers["location"]


async def _patch(client: Client, path: str, offset: int, content: Any, status: int = 204, **more: str) -> Any:
    return await _send(
        client, "PATCH", path, status, content=content, headers=BYTES | {"Upload-Offset": str(offset)} | more
    )


async def _pieces(content: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(content), 70_000):
        yield content[start : start + 70_000]


async def _offset(client: Client, path: str) -> int:
    return int((await _send(client, "HEAD", path, 200)).headers["upload-offset"])


class _Cut:
    """A PATCH whose connection is cut, or kept open, after some bytes."""

    def __init__(self, client: Client, path: str, offset: int, content: bytes) -> None:
        self.status = 0
        self.end = asyncio.Event()
        self.received = asyncio.Event()
        self._sent: list[Any] = [{"type": "http.request", "body": content, "more_body": True}]
        given = {"authorization": f"Bearer {client.token}", "host": "x", "tus-resumable": "1.0.0"}
        given |= {"upload-offset": str(offset), "content-type": "application/offset+octet-stream"}
        self._scope: Any = {
            "type": "http", "method": "PATCH", "path": path, "raw_path": path.encode(), "query_string": b"",
            "headers": [(name.encode(), value.encode()) for name, value in given.items()],
            "client": ("192.0.2.1", 1), "server": ("x", 80), "scheme": "http", "http_version": "1.1", "root_path": "",
            "asgi": {"version": "3.0"}, "state": {},
        }  # fmt: skip
        self.task = asyncio.create_task(client.app(self._scope, self._receive, self._send))  # type: ignore[arg-type]

    async def _receive(self) -> Any:
        if self._sent:
            return self._sent.pop()
        self.received.set()
        await self.end.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Any) -> None:
        self.status = message.get("status", self.status)


@pytest.mark.slow
async def test_the_life_of_a_resumable_upload(ada: Client, database: Database) -> None:
    bob = await Client(ada.app, address="192.0.2.2").join("bob@example.com")
    project = await _project(ada)
    name = base64.b64encode("报告.bin".encode()).decode()
    path = await _create(ada, project, **{"Upload-Metadata": f"broken !!!,is_confidential,filename {name}"})
    assert await _offset(ada, path) == 0
    for method in ("HEAD", "PATCH", "DELETE"):
        await _send(bob, method, path, 404, headers=BYTES | {"Upload-Offset": "0"})

    first = await _patch(ada, path, 0, CONTENT[:300_001])
    assert first.headers["upload-offset"] == "300001"
    assert first.headers["upload-expires"].endswith("GMT")
    conflict = await _patch(ada, path, 0, CONTENT, 409)
    assert conflict.json()["code"] == "OFFSET_CONFLICT"
    await _patch(ada, path, 300_001, _pieces(CONTENT[300_001:2_400_003]))
    cut = _Cut(ada, path, 2_400_003, CONTENT[2_400_003:2_500_000])
    await cut.received.wait()
    cut.end.set()
    await cut.task
    assert cut.status == 499
    assert await _offset(ada, path) == 2_500_000
    await _patch(ada, path, 2_500_000, CONTENT[2_500_000:] + b"more", 413)
    last = await _patch(ada, path, 2_500_000, _pieces(CONTENT[2_500_000:]))
    assert last.headers["upload-offset"] == str(len(CONTENT))
    assert await _offset(ada, path) == len(CONTENT)
    got = await _send(ada, "GET", last.headers["asset-location"], 200)
    assert got.content == CONTENT
    assert got.headers["etag"] == f'"{hashlib.sha256(CONTENT).hexdigest()}"'
    listed = (await _send(ada, "GET", f"{project}/assets", 200)).json()["assets"]
    assert [(each["name"], each["sizeBytes"]) for each in listed] == [("报告.bin", len(CONTENT))]
    assert await database.raw["assets.chunks"].count_documents({}) == -(-len(CONTENT) // 261_120)
    await _send(ada, "DELETE", path, 404)


@pytest.mark.slow
async def test_a_request_that_returns_takes_the_upload_from_one_that_hangs(ada: Client) -> None:
    path = await _create(ada, await _project(ada))
    hanging = _Cut(ada, path, 0, CONTENT[:1_000_000])
    await hanging.received.wait()
    offset = await _offset(ada, path)
    assert offset == 1_000_000
    await hanging.task
    assert hanging.status == 409
    sent = await asyncio.gather(*(_try(ada, path, offset) for _ in range(3)))
    assert sorted(sent) == [204, 409, 409]
    assert await _offset(ada, path) == len(CONTENT)
    state = (await _send(ada, "GET", path, 200)).json()
    got = await _send(ada, "GET", f"{path.split('/uploads')[0]}/assets/{state['asset']}", 200)
    assert got.content == CONTENT


async def _try(client: Client, path: str, offset: int) -> int:
    headers = {"Authorization": f"Bearer {client.token}", "Tus-Resumable": "1.0.0", "Upload-Offset": str(offset)}
    return (await client.http.patch(path, headers=headers | BYTES, content=CONTENT[offset:])).status_code


@pytest.mark.slow
async def test_what_the_protocol_offers(ada: Client) -> None:
    project = await _project(ada)
    options = await _send(ada, "OPTIONS", f"{project}/uploads", 204)
    assert options.headers["tus-version"] == "1.0.0"
    assert options.headers["tus-max-size"] == "1000000000"
    old = await _send(ada, "POST", f"{project}/uploads", 412, headers={"Tus-Resumable": "0.2.2", "Upload-Length": "1"})
    assert old.headers["tus-version"] == "1.0.0"
    await _send(ada, "POST", f"{project}/uploads", 400)
    await _send(ada, "POST", f"{project}/uploads", 413, headers={"Upload-Length": "1000000001"})

    empty = await _send(ada, "POST", f"{project}/uploads", 201, headers={"Upload-Length": "0"})
    assert (await _send(ada, "GET", empty.headers["asset-location"], 200)).content == b""
    headers = BYTES | {"Upload-Length": "5"}
    whole = await _send(ada, "POST", f"{project}/uploads", 201, headers=headers, content=b"hello")
    assert whole.headers["upload-offset"] == "5"
    assert (await _send(ada, "GET", whole.headers["asset-location"], 200)).content == b"hello"

    deferred = await _create(ada, project, None)
    assert (await _send(ada, "HEAD", deferred, 200)).headers["upload-defer-length"] == "1"
    await _patch(ada, deferred, 0, b"hel")
    done = await _patch(ada, deferred, 3, b"lo", **{"Upload-Length": "5"})
    assert (await _send(ada, "GET", done.headers["asset-location"], 200)).content == b"hello"
    assert await _offset(ada, deferred) == 5  # though its content was there already


@pytest.mark.slow
async def test_a_wrong_checksum_keeps_nothing(ada: Client) -> None:
    path = await _create(ada, await _project(ada))
    await _patch(ada, path, 0, CONTENT[:1000])
    wrong = "sha1 " + base64.b64encode(hashlib.sha1(b"other").digest()).decode()
    await _patch(ada, path, 1000, CONTENT[1000:], 460, **{"Upload-Checksum": wrong})
    assert await _offset(ada, path) == 1000
    await _patch(ada, path, 1000, CONTENT[1000:], 400, **{"Upload-Checksum": "crc32 AAAA"})
    right = "sha256 " + base64.b64encode(hashlib.sha256(CONTENT[1000:]).digest()).decode()
    done = await _patch(ada, path, 1000, CONTENT[1000:], 204, **{"Upload-Checksum": right})
    assert (await _send(ada, "GET", done.headers["asset-location"], 200)).content == CONTENT


@pytest.mark.slow
async def test_an_upload_that_ends_or_expires_leaves_nothing(ada: Client, database: Database) -> None:
    project = await _project(ada)
    gauge = await database.raw["gauges"].find_one({})
    assert gauge is not None
    for expires in (False, True):
        path = await _create(ada, project)
        await _patch(ada, path, 0, CONTENT[:2_500_000])
        if expires:
            await database.raw["assetfiles"].update_many({}, {"$set": {"until": database.clock.now()}})
            await assets_storage.sweep(database=database)
        else:
            await _send(ada, "DELETE", path, 204)
        await _send(ada, "HEAD", path, 404)
        assert (await database.raw["gauges"].find_one({}))["storageBytes"] == gauge["storageBytes"]
        assert await database.raw["assets.chunks"].count_documents({}) == 0
