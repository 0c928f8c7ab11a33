"""The real Excalidraw on one project, in two browsers,
with a server that is killed meanwhile: `examples/excalidraw`."""

import asyncio
import contextlib
import http.server
import json
import shlex
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from tests.browser.chromium import Chromium, Page, chromium
from tests.cli.conftest import Up, free_port, up
from tests.cli.test_up import PASSWORD, an_account
from tests.node import node_with

__all__ = ["up"]  # the fixture

EXAMPLE = Path(__file__).parents[2] / "examples" / "excalidraw"
_UNUSED = "--external:@excalidraw/mermaid-to-excalidraw"  # loaded by one dialog, and half of the bundle
_SCENE = "JSON.stringify(drawing.api.getSceneElements())"

pytestmark = pytest.mark.slow


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None: ...


@pytest.fixture
def site(tmp_path: Path) -> Iterator[str]:
    """The example, built and served: its address."""
    folder = tmp_path / "site"
    node, modules = node_with(EXAMPLE)
    shutil.copytree(EXAMPLE, folder, ignore=shutil.ignore_patterns("node_modules", "dist"))
    (folder / "node_modules").symlink_to(modules, target_is_directory=True)
    program, *arguments = shlex.split(json.loads((folder / "package.json").read_text())["scripts"]["build"])
    esbuild = modules / program / "bin" / program
    subprocess.run([node, esbuild, *arguments, _UNUSED, "--log-level=error"], cwd=folder, check=True)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


class Editors:
    """Two pages on a project, and the server's canvas."""

    def __init__(self, running: Up, token: str, project: str, pages: list[Page]) -> None:
        self.running, self.token, self.project, self.pages = running, token, project, pages

    def canvas(self) -> list[dict[str, Any]]:
        headers = {"Authorization": f"Bearer {self.token}"}
        answer = self.running.client.get(f"/v1/projects/{self.project}/canvas", headers=headers)
        assert answer.status_code == 200, answer.text
        return sorted(answer.json().get("elements", []), key=lambda element: (element["index"], element["id"]))

    async def equal(self, *names: str) -> list[dict[str, Any]]:
        """The elements, when both scenes and the canvas have the same,
        with those that are named by their links."""
        deadline = time.monotonic() + 60
        while True:
            saved = await asyncio.to_thread(self.canvas)
            scenes = [json.loads(await page.run(_SCENE)) for page in self.pages]
            if all(scene == saved for scene in scenes) and {*names} <= {each["link"] for each in saved}:
                return saved
            if time.monotonic() > deadline:
                differ = [[each for each in scene if each not in saved] for scene in scenes]
                lack = [[each for each in saved if each not in scene] for scene in scenes]
                assert (differ, lack) == ([[]] * len(scenes), [[]] * len(scenes)), [each["id"] for each in saved]
                raise TimeoutError(f"not all of {names} are in {saved}")
            await asyncio.sleep(0.05)


async def _draw(page: Page, name: str, then: str = "") -> None:
    """By Excalidraw's API."""
    await page.run(
        f"""(() => {{
          const place = {{ x: 300 * Math.random(), y: 300 * Math.random(), width: 50, height: 50, angle: 0 }};
          const drawn = {{ id: {json.dumps(name)}, link: {json.dumps(name)}, type: "ellipse", ...place, groupIds: [],
            strokeColor: "#1e1e1e", backgroundColor: "transparent", fillStyle: "solid", strokeWidth: 2, strokeStyle: "solid",
            roughness: 1, opacity: 100, seed: 1, version: 1, versionNonce: 1, isDeleted: false, boundElements: null,
            updated: 1, locked: false, frameId: null, roundness: null, index: null }};
          const scene = drawing.api.getSceneElementsIncludingDeleted();
          drawing.api.updateScene({{ elements: [...scene, drawn] }});
          {then}
        }})()"""
    )


async def _change(page: Page, name: str, properties: str) -> None:
    """As a user's action does it: a new version of the element."""
    await page.run(
        f"""drawing.api.updateScene({{
          elements: drawing.api.getSceneElementsIncludingDeleted().map((each) => each.link === {json.dumps(name)}
            ? {{ ...each, {properties}, version: each.version + 1, versionNonce: Math.floor(Math.random() * 2 ** 31) }}
            : each),
        }})"""
    )


async def _signed_in(browser: Chromium, address: str, **fields: str) -> Page:
    page = await browser.page()
    await page.open(address)
    await page.until("document.querySelector('.sign-in button')")
    await page.run(
        f"""Object.entries({json.dumps(fields)}).forEach(([name, value]) =>
          (document.querySelector(`[name=${{name}}]`).value = value)); document.querySelector("button").click()"""
    )
    await page.until("window.drawing")
    return page


async def test_two_browsers_and_a_killed_server_end_with_identical_scenes(
    site: str, up: Callable[..., Up], tmp_path: Path
) -> None:
    port = str(free_port())
    start = partial(up, "--port", port, env={"XIMLER_CORS_ORIGINS": site})
    running = await asyncio.to_thread(start)
    token = an_account(running)
    key = running.query(
        'mutation { createApiKey(input: {name: "k", permissions: ["projects:read", "projects:write"]}) { secret } }',
        token=token,
    )["data"]["createApiKey"]["secret"]
    page = f"{site}/?server={running.url}"
    async with contextlib.AsyncExitStack() as stack:
        browser = await stack.enter_async_context(chromium(tmp_path / "profile"))
        one = await _signed_in(browser, page, email="ada@example.com", password=PASSWORD)
        project = (await one.run("location.hash"))[1:]
        two = await _signed_in(browser, f"{page}#{project}", key=key)
        editors = Editors(running, token, project, [one, two])

        # By mouse in one browser, by the API in the other.
        await one.press("r")
        await one.drag((300, 300), (350, 330), (420, 380))
        await _draw(two, "by the API")
        (drawn,) = [each for each in await editors.equal("by the API") if each["type"] == "rectangle"]
        assert (drawn["width"], drawn["height"]) == (120, 80)

        # Both change an element at the same time; one deletes what the other changes.
        await _draw(one, "deleted")
        await editors.equal("deleted")
        await asyncio.gather(
            _change(one, "by the API", "strokeColor: '#e03131'"), _change(two, "by the API", "opacity: 60"),
            _change(one, "deleted", "isDeleted: true"), _change(two, "deleted", "opacity: 50"),
        )  # fmt: skip
        await two.until("!drawing.api.getSceneElements().some((each) => each.link === 'deleted')")
        saved = {each["link"]: each for each in await editors.equal("by the API")}
        assert (saved["by the API"]["strokeColor"], saved["by the API"]["opacity"]) == ("#e03131", 60)
        assert "deleted" not in saved

        # The server is killed. Both go on drawing;
        # one page is loaded again, which it cannot show before the server is back.
        running.kill()
        await asyncio.to_thread(running.process.wait)
        await _draw(one, "offline one")
        await one.press("r")
        await one.drag((500, 300), (550, 330), (600, 380))
        await _draw(two, "offline two")
        await one.until("document.querySelector('.state').textContent.startsWith('Not saved yet')")
        await _draw(two, "offline two, before the page is left", then="location.reload()")
        running = editors.running = await asyncio.to_thread(start)
        await two.until("window.drawing")
        await _draw(two, "after")
        saved_again = await editors.equal("offline one", "offline two", "offline two, before the page is left", "after")
        assert [each["type"] for each in saved_again].count("rectangle") == 2
        await one.until("document.querySelector('.state').textContent === ''")

        # A page that is left at once has saved its last change;
        # a change that is refused is shown, and taken back.
        await _draw(one, "left", then="location.href = 'about:blank'")
        await two.until("drawing.api.getSceneElements().some((each) => each.link === 'left')")
        await _draw(two, "too long an id" * 20)
        await two.until("document.querySelector('.state').textContent.startsWith('Not saved:')")
        editors.pages = [two]
        assert all(len(each["id"]) < 200 for each in await editors.equal("left", "after"))
        assert browser.errors == []
