"""Clients of tus that others wrote, unchanged, on connections that are cut."""

import asyncio
import contextlib
import io
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from litestar.types import ASGIApp
from tests.node import node_with
from tests.serving import Client
from tusclient.client import TusClient
from tusclient.exceptions import TusCommunicationError

CONTENT = bytes(range(256)) * 20_000  # 5 MB


class Wire:
    """A way to the server at `port` that cuts each of its first connections
    after so many bytes of requests."""

    def __init__(self, port: int, *cuts: int) -> None:
        self.cuts = list(cuts)
        self._to = port
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> str:
        self._server = await asyncio.start_server(self._carry, "127.0.0.1", 0, family=socket.AF_INET)
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", self._to)
        answers = asyncio.create_task(self._answers(there, writer))
        self._tasks.add(answers)
        sent = 0
        with contextlib.suppress(ConnectionError):
            while piece := await reader.read(50_000):
                sent += len(piece)
                if self.cuts and sent > self.cuts[0]:
                    self.cuts.pop(0)
                    break
                back.write(piece)
                await back.drain()
        answers.cancel()
        for each in (writer, back):
            each.transport.abort()

    async def _answers(self, there: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while piece := await there.read(50_000):
                writer.write(piece)
                await writer.drain()


@pytest.fixture
async def port(app: ASGIApp) -> AsyncIterator[int]:
    """The application on a port of the loopback address."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, interface="asgi3", lifespan="off", ws="none", log_level="warning"))
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        yield listener.getsockname()[1]
        server.should_exit = True
        await serving


async def _uploads(client: Client) -> str:
    return f"/v1/projects/{(await client.create('p'))['createProject']['id']}/uploads"


async def _check(client: Client, uploads: str, name: str) -> None:
    """Its project has the file, whole."""
    headers = {"Authorization": f"Bearer {client.token}"}
    path = uploads.replace("/uploads", "/assets")
    listed = (await client.http.get(path, headers=headers)).json()["assets"]
    assert [(each["name"], each["sizeBytes"]) for each in listed] == [(name, len(CONTENT))]
    assert (await client.http.get(listed[0]["url"])).content == CONTENT


@pytest.mark.slow
async def test_tuspy_continues_where_it_was_cut(ada: Client, port: int) -> None:
    uploads = await _uploads(ada)
    async with Wire(port, 2_000_000) as origin:
        client = TusClient(f"{origin}{uploads}", headers={"Authorization": f"Bearer {ada.token}"})

        def upload(**more: Any) -> Any:
            uploader = client.uploader(
                file_stream=io.BytesIO(CONTENT), metadata={"filename": "a.bin"}, chunk_size=4_000_000, **more
            )
            with contextlib.suppress(TusCommunicationError):
                uploader.upload()
            return uploader

        first = await asyncio.to_thread(upload)
        assert first.offset < len(CONTENT)
        second = await asyncio.to_thread(upload, url=first.url)
        assert second.offset == len(CONTENT)
    await _check(ada, uploads, "a.bin")


@pytest.mark.slow
async def test_tus_js_client_continues_where_it_was_cut(ada: Client, port: int) -> None:
    folder = Path(__file__).with_name("tus")
    node, modules = await asyncio.to_thread(node_with, folder)
    uploads = await _uploads(ada)
    async with Wire(port, 2_000_000, 1_500_000) as origin:
        process = await asyncio.create_subprocess_exec(
            node, folder / "upload.mjs", modules / "tus-js-client", f"{origin}{uploads}", str(ada.token),
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=sys.stderr,
        )  # fmt: skip
        said, _ = await process.communicate(CONTENT)
        assert process.returncode == 0
        assert f"{uploads}/".encode() in said
    await _check(ada, uploads, "报告.bin")
