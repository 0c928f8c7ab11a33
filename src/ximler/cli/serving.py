"""Serving the application: in this process, or in several that share one socket.

One worker runs here. More run as children that inherit the listening socket; each holds the reading end of a pipe whose other
end only this process has, so that none outlives it, however it ends. A child that dies is replaced.
"""

import asyncio
import contextlib
import gc
import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import click
import msgspec
import structlog
import uvicorn
from prometheus_client.multiprocess import mark_process_dead

from ximler.cli.protocol import Protocol
from ximler.core import logs
from ximler.core.errors import Unavailable, XimlerError
from ximler.core.settings import Settings

__all__ = ["PortUnavailable", "bind", "child", "raise_file_limit", "runner", "serve_here", "serve_in_children"]

_log = structlog.get_logger("ximler")
_TOO_YOUNG_S = 2.0
_READY = b"!"
_BUG = 70


class PortUnavailable(Unavailable):
    code = "PORT_UNAVAILABLE"


class _Job(msgspec.Struct):
    """What a child is told on its standard input, before that becomes the pipe it watches."""

    settings: Settings
    uri: str


def raise_file_limit() -> None:
    """Let this process and its children open as many files as they may: a connection is one."""
    try:
        import resource
    except ImportError:  # Windows
        return
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # macOS says "unlimited" and does not mean it
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def bind(host: str, port: int) -> socket.socket:
    """A listening socket. Raises PortUnavailable, which says what to do."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise PortUnavailable(
            f"Cannot listen on {host}:{port} ({error.strerror}): choose another with --port, or end what uses it"
        ) from None
    listener.listen(2048)
    listener.setblocking(False)
    return listener


async def serve_here(
    settings: Settings, uri: str, listener: socket.socket, *, stop: asyncio.Event, started: Callable[[], None]
) -> None:
    """Serve until `stop` is set, or SIGINT or SIGTERM comes; running requests get `drain_seconds` to finish."""
    server = _Server(settings, uri, started)

    async def leave() -> None:
        await stop.wait()
        server.should_exit = True

    leaving = asyncio.ensure_future(leave())
    try:
        await server.serve([listener])
    finally:
        leaving.cancel()


async def serve_in_children(
    settings: Settings, uri: str, listener: socket.socket, *, stop: asyncio.Event, started: Callable[[], None]
) -> None:
    """Keep `settings.workers` children serving until `stop` is set; then let them finish.

    Ends with the exit code of the first child where none of them begins to serve; `started` is called when one does.
    """
    with tempfile.TemporaryDirectory(prefix="ximler-metrics-") as metrics:
        job = msgspec.json.encode(_Job(settings, uri), enc_hook=str) + b"\n"
        children = [_Child(job, listener, metrics) for _ in range(settings.workers)]
        stopping = asyncio.ensure_future(stop.wait())
        try:
            ready = await asyncio.gather(*(child.start() for child in children))
            if not any(ready) and not stop.is_set():
                raise click.exceptions.Exit(await children[0].failed())
            started()
            while not stopping.done():
                exits = [asyncio.ensure_future(child.process.wait()) for child in children]
                await asyncio.wait([stopping, *exits], return_when=asyncio.FIRST_COMPLETED)
                for exiting in exits:
                    exiting.cancel()
                if not stopping.done():
                    await asyncio.gather(
                        *(child.replace() for child in children if child.process.returncode is not None)
                    )
        finally:
            stopping.cancel()
            listener.close()  # the children close theirs, too: who comes now is refused, and not left waiting
            await asyncio.gather(*(child.finish(settings.drain_seconds + 5) for child in children))


def child() -> None:
    """What a child process runs: reads its job from standard input, serves, and leaves when that closes."""
    job = msgspec.json.decode(sys.stdin.buffer.readline(), type=_Job, dec_hook=lambda kind, value: kind(value))
    logs.configure(job.settings)
    listener = socket.socket(fileno=int(sys.argv[1]))
    announce = int(sys.argv[2])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group: only the parent decides

    def ready() -> None:
        os.write(announce, _READY)
        os.close(announce)

    async def work() -> None:
        server = _Server(job.settings, job.uri, ready)
        loop = asyncio.get_running_loop()

        def parent_gone() -> None:
            if not os.read(0, 1024):
                loop.remove_reader(0)
                server.should_exit = True

        loop.add_reader(0, parent_gone)
        await server.serve([listener])

    try:
        with runner() as loop:
            loop.run(work())
    except XimlerError as problem:
        from ximler.cli.main import report

        sys.exit(report(problem))


class _Child:
    process: asyncio.subprocess.Process

    def __init__(self, job: bytes, listener: socket.socket, metrics: str) -> None:
        self._job = job
        self._listener = listener
        self._metrics = metrics
        self._born = 0.0

    async def start(self) -> bool:
        """Returns when the child serves; False when it ended trying."""
        self._born = time.monotonic()
        ready, announce = os.pipe()
        arguments = ["-c", "from ximler.cli.serving import child; child()", str(self._listener.fileno()), str(announce)]
        try:
            self.process = await asyncio.create_subprocess_exec(
                sys.executable,
                *arguments,
                stdin=subprocess.PIPE,
                pass_fds=(self._listener.fileno(), announce),
                env={**os.environ, "PROMETHEUS_MULTIPROC_DIR": self._metrics},
            )
        finally:
            os.close(announce)
        if self.process.stdin is not None:
            self.process.stdin.write(self._job)
        try:
            return await asyncio.to_thread(os.read, ready, 1) == _READY
        finally:
            os.close(ready)

    async def failed(self) -> int:
        """The exit code of a child that did not start."""
        code = await self.process.wait()
        return code if code > 0 else _BUG

    async def replace(self) -> None:
        _log.error("worker died", pid=self.process.pid, exit_code=self.process.returncode)
        # It has no connections any more; its counters stay.
        mark_process_dead(self.process.pid, self._metrics)  # type: ignore[no-untyped-call]  # the library has no types here
        if time.monotonic() - self._born < _TOO_YOUNG_S:
            await asyncio.sleep(1)
        await self.start()

    async def finish(self, timeout_s: float) -> None:
        """Closing the pipe asks it to drain and leave; one that does not is killed."""
        if self.process.stdin is not None:
            self.process.stdin.close()
        try:
            await asyncio.wait_for(self.process.wait(), timeout_s)
        except TimeoutError:
            _log.error("worker killed", pid=self.process.pid, reason="it did not finish in time")
            self.process.kill()
            await self.process.wait()


class _Server(uvicorn.Server):
    def __init__(self, settings: Settings, uri: str, on_started: Callable[[], object]) -> None:
        from ximler.app import create

        self._on_started = on_started
        self._problem: BaseException | None = None
        app = create(settings, uri=uri)

        async def remember(scope: Any, receive: Any, send: Any) -> None:
            try:
                await app(scope, receive, send)
            except BaseException as error:
                self._problem = error
                raise

        async def serve(scope: Any, receive: Any, send: Any) -> None:
            await (app if scope["type"] == "http" else remember)(scope, receive, send)

        super().__init__(
            uvicorn.Config(
                serve,
                interface="asgi3",
                http=Protocol,
                limit_concurrency=settings.max_connections,
                ws="none",
                lifespan="on",
                log_config=None,
                access_log=False,
                proxy_headers=False,
                server_header=False,
                timeout_graceful_shutdown=settings.drain_seconds,
            )
        )

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Raises what kept the application from starting; uvicorn would log it, with a traceback, and exit with 3."""
        log = logging.getLogger("uvicorn.error")
        log.disabled = True
        try:
            await super().startup(sockets)
        except SystemExit:
            raise _root(self._problem) if self._problem else Unavailable("The application did not start") from None
        finally:
            log.disabled = False
        if self.started:
            # What is here now stays: there is no garbage in it to be looked for again and again.
            gc.collect()
            gc.freeze()
            self._on_started()


def _root(problem: BaseException) -> BaseException:
    """Out of the groups that the application's parts wrap it in."""
    while isinstance(problem, BaseExceptionGroup):
        problem = problem.exceptions[0]
    return problem


def runner() -> asyncio.Runner:
    try:
        import uvloop
    except ImportError:  # Windows
        return asyncio.Runner()
    return asyncio.Runner(loop_factory=uvloop.new_event_loop)
