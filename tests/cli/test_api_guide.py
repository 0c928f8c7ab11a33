"""The guide for users of the API: its examples run, and its tables are those of the code."""

import importlib
import os
import pkgutil
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import ximler
from ximler.apikeys.scopes import SCOPES
from ximler.core.errors import XimlerError
from ximler.http.problems import status_of

GUIDE = (Path(__file__).parents[2] / "docs" / "api.md").read_text("utf-8")
SCHEMA = (Path(__file__).parents[2] / "docs" / "schema.graphql").read_text("utf-8")
# Errors that a command prints, and no request gets.
_NOT_OF_THE_API = {
    "AUDIT_KEY_MISSING", "DATA_DIR_IN_USE", "DATA_DIR_UNUSABLE", "DISK_FULL", "EMBEDDED_SERVER", "FILE_NOT_WRITTEN",
    "MONGOD_MISSING", "MONGOD_UNUSABLE", "PORT_IN_USE", "PORT_UNAVAILABLE", "SCHEMA_NOT_READY", "SCHEMA_TOO_NEW",
    "SETTINGS_INVALID", "STANDALONE_SERVER", "WORKER_DIED",
}  # fmt: skip


def rows(table: str) -> list[list[str]]:
    found = re.search(f"<!-- {table} -->\n(.*?)<!-- /{table} -->", GUIDE, re.DOTALL)
    assert found is not None
    return [[cell.strip(" `") for cell in line.strip("|").split("|")] for line in found[1].splitlines()[2:]]


def subclasses(kind: type[XimlerError]) -> set[type[XimlerError]]:
    return {kind} | {below for each in kind.__subclasses__() for below in subclasses(each)}


def test_every_error_code_of_the_api_is_documented_with_its_status() -> None:
    for module in pkgutil.walk_packages(ximler.__path__, "ximler."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    errors = {
        each for each in subclasses(XimlerError) if each is not XimlerError and each.__module__.startswith("ximler.")
    }
    expected = {(each.code, str(status_of(each.__new__(each)))) for each in errors if each.code not in _NOT_OF_THE_API}
    assert {(code, status) for code, status, _ in rows("errors")} == expected


def test_every_scope_is_documented() -> None:
    assert dict(rows("scopes")) == SCOPES


def test_every_scalar_is_mapped_for_code_generators() -> None:
    scalars = set(re.findall(r"^scalar (\w+)", SCHEMA, re.MULTILINE))
    mapping = re.search(r"  scalars:\n((?:    \w+: [\w |]+\n)+)", GUIDE)
    assert mapping is not None
    assert set(re.findall(r"    (\w+):", mapping[1])) == scalars


def test_the_examples_run_as_they_stand(up: Any) -> None:
    server = up()
    blocks = re.findall(r"```sh\n(.*?)```", GUIDE, re.DOTALL)
    script = "set -euo pipefail\nTOKEN=\n" + "\n".join(blocks)
    done = subprocess.run(
        ["bash", "-c", script],
        env={
            **os.environ,
            "API": server.url,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "XIMLER_DATA_DIR": str(server.data_dir),
        },
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert '"errors"' not in done.stdout, done.stdout
