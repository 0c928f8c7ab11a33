"""The OpenAPI document by the recommended rules of `redocly lint`."""

import asyncio
import json
import os
import subprocess
from pathlib import Path

import pytest
from tests.node import node_with
from tests.serving import Client


@pytest.mark.slow
async def test_redocly_finds_no_fault_by_its_recommended_rules(client: Client, tmp_path: Path) -> None:
    node, modules = await asyncio.to_thread(node_with, Path(__file__).with_name("openapi"))
    (tmp_path / "openapi.json").write_bytes((await client.http.get("/docs/openapi.json")).content)
    (tmp_path / "redocly.yaml").write_text("extends: [recommended]\ntelemetry: off\n")
    done = await asyncio.to_thread(
        subprocess.run,
        [node, str(modules / "@redocly" / "cli" / "bin" / "cli.js"), "lint", "--format=json", "openapi.json"],
        cwd=tmp_path,
        env=os.environ | {"REDOCLY_TELEMETRY": "off", "REDOCLY_SUPPRESS_UPDATE_NOTICE": "true"},
        capture_output=True,
        text=True,
    )
    assert json.loads(done.stdout)["problems"] == [], done.stderr
