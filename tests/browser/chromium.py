"""Chromium without a window, driven by its DevTools protocol over a pipe: no driver, and no other package."""

import asyncio
import base64
import fcntl
import itertools
import json
import os
import shutil
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

__all__ = ["Chromium", "Page", "chromium"]

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_ARGUMENTS = (
    "--headless=new",
    "--remote-debugging-pipe",
    "--no-sandbox",  # as root in a container
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-timer-throttling",  # all pages but one are in the background
    "--disable-backgrounding-occluded-windows",
    "--disable-renderer-backgrounding",
    "--no-first-run",
)
_LAUNCH = (
    "import os, sys; os.dup2(int(sys.argv[1]), 3); os.dup2(int(sys.argv[2]), 4); os.execvp(sys.argv[3], sys.argv[3:])"
)
_LONGEST_MESSAGE = 64 * 1024 * 1024
_PATIENCE_S = 60


class Chromium:
    def __init__(self, reader: asyncio.StreamReader, pipe: Any) -> None:
        self._pipe = pipe
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._reading = asyncio.create_task(self._read(reader))
        self.errors: list[str] = []  # uncaught, of all pages

    async def ask(self, method: str, session: str | None = None, **params: Any) -> Any:
        number = next(self._numbers)
        answer = self._waiting[number] = asyncio.get_running_loop().create_future()
        message = {"id": number, "method": method, "params": params, **({"sessionId": session} if session else {})}
        self._pipe.write(json.dumps(message).encode() + b"\0")
        return await asyncio.wait_for(answer, _PATIENCE_S)

    async def page(self) -> "Page":
        """In a profile of its own: other pages' storage and cookies are not there."""
        context = (await self.ask("Target.createBrowserContext"))["browserContextId"]
        return await self.page_in(context)

    async def page_in(self, context: str) -> "Page":
        target = (await self.ask("Target.createTarget", url="about:blank", browserContextId=context))["targetId"]
        session = (await self.ask("Target.attachToTarget", targetId=target, flatten=True))["sessionId"]
        page = Page(self, context, target, session)
        await page.ask("Page.enable")
        await page.ask("Runtime.enable")
        return page

    async def _read(self, reader: asyncio.StreamReader) -> None:
        while message := await _message(reader):
            if waiting := self._waiting.pop(message.get("id", 0), None):
                if waiting.done():
                    continue
                if "error" in message:
                    waiting.set_exception(RuntimeError(message["error"]["message"]))
                else:
                    waiting.set_result(message["result"])
            elif message.get("method") == "Runtime.exceptionThrown":
                details = message["params"]["exceptionDetails"]
                self.errors.append(details.get("exception", {}).get("description", details["text"]))
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_exception(ConnectionError("Chromium has ended"))


class Page:
    def __init__(self, browser: Chromium, context: str, target: str, session: str) -> None:
        self._browser, self.context, self._target, self._session = browser, context, target, session

    async def ask(self, method: str, **params: Any) -> Any:
        return await self._browser.ask(method, self._session, **params)

    async def open(self, url: str) -> None:
        await self.ask("Page.navigate", url=url)

    async def run(self, script: str) -> Any:
        """The value of an expression; of a promise when it is settled."""
        found = await self.ask("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in found:
            raise RuntimeError(found["exceptionDetails"].get("exception", {}).get("description"))
        return found["result"].get("value")

    async def until(self, condition: str) -> None:
        async with asyncio.timeout(_PATIENCE_S):
            while True:
                try:
                    if await self.run(f"Boolean({condition})"):
                        return
                except RuntimeError:  # the page is being loaded
                    pass
                await asyncio.sleep(0.05)

    async def press(self, key: str) -> None:
        await self.ask("Input.dispatchKeyEvent", type="keyDown", key=key, text=key)
        await self.ask("Input.dispatchKeyEvent", type="keyUp", key=key)

    async def drag(self, *places: tuple[int, int]) -> None:
        """With the left button, from the first place over the others."""
        kinds = ["mouseMoved", "mousePressed", *["mouseMoved"] * (len(places) - 1), "mouseReleased"]
        for kind, (x, y) in zip(kinds, [places[0], *places, places[-1]], strict=True):
            button = {"button": "left", "clickCount": 1} if kind != "mouseMoved" else {}
            await self.ask("Input.dispatchMouseEvent", type=kind, x=x, y=y, buttons=1, **button)

    async def picture(self, path: Path) -> None:
        picture = base64.b64decode((await self.ask("Page.captureScreenshot"))["data"])
        await asyncio.to_thread(path.write_bytes, picture)

    async def close(self) -> None:
        await self._browser.ask("Target.closeTarget", targetId=self._target)


@asynccontextmanager
async def chromium(profile: Path) -> AsyncIterator[Chromium]:
    """Raises RuntimeError where the machine has none."""
    program = next(filter(None, map(shutil.which, _NAMES)), None)
    if program is None:
        raise RuntimeError("The tests in tests/browser need Chromium: apt-get install chromium")
    theirs_in, ours_out = os.pipe()
    ours_in, theirs_out = os.pipe()
    high = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10) for fd in (theirs_in, theirs_out)]
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _LAUNCH, *map(str, high), program, *_ARGUMENTS, f"--user-data-dir={profile}",
        pass_fds=high,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    for fd in (theirs_in, theirs_out, *high):
        os.close(fd)
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=_LONGEST_MESSAGE)
    incoming, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(ours_in, "rb"))
    with os.fdopen(ours_out, "wb", buffering=0) as pipe:
        browser = Chromium(reader, pipe)
        try:
            yield browser
        finally:
            pipe.close()  # which ends it
            try:
                await asyncio.wait_for(process.wait(), 20)
            except TimeoutError:
                process.kill()
                await process.wait()
            await browser._reading
            incoming.close()


async def _message(reader: asyncio.StreamReader) -> dict[str, Any]:
    try:
        return dict(json.loads((await reader.readuntil(b"\0"))[:-1]))
    except asyncio.IncompleteReadError:
        return {}
