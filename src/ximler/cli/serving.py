"""Serving the application: in this process, or in several that share one socket.

One worker runs here. More run as children that inherit the listening socket; each holds the reading end of a
pipe whose other end only this process has, so that none outlives it, however it ends. A child that dies is
replaced.
"""

import asyncio
import contextlib
import gc
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import IO, Any

import click
import msgspec
import structlog
import uvicorn
from prometheus_client.multiprocess import mark_process_dead

from ximler.cli.protocol import Addresses, Protocol
from ximler.core import logs
from ximler.core.errors import Unavailable, XimlerError
from ximler.core.settings import Settings
from ximler.core.stopping import end, pause
from ximler.runtime import Part, Runtime, Shutdown

__all__ = [
    "PortUnavailable",
    "bind",
    "child",
    "end_with_parent",
    "raise_file_limit",
    "runner",
    "serve_here",
    "serve_in_children",
    "tune_collector",
]

_log = structlog.get_logger("ximler")
_CHILD_GRACE_S = 3.5  # less than the parent's: it reports and stops the database after them
_METRICS = "ximler-metrics-"
_READY = b"!"
_BUG = 70
# Requests free their objects by reference counts;
# collections at Python's thresholds (700, 10, 10) only visit live ones.
_GC_THRESHOLDS = (10_000, 10, 10)
# Bytes beyond what a client's window admits that the system takes for it. Linux would take 4 MB for one that
# reads nothing: memory, and a millisecond and more of the event loop each.
_UNSENT = 65_536


class PortUnavailable(Unavailable):
    code = "PORT_UNAVAILABLE"


class WorkerDied(Unavailable):
    code = "WORKER_DIED"


class _Job(msgspec.Struct):
    """The configuration of a child, sent over its standard input, which it then watches as a pipe."""

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
    """A listening socket. Raises PortUnavailable with a remedy."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if hasattr(socket, "TCP_NOTSENT_LOWAT"):  # inherited by its connections
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _UNSENT)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise PortUnavailable(
            f"Cannot listen on {host}:{port} ({error.strerror}): choose another with --port, or end the program that uses it"
        ) from None
    listener.listen(2048)
    listener.setblocking(False)
    return listener


async def serve_here(
    settings: Settings, uri: str, listener: socket.socket, *, shutdown: Shutdown, started: Callable[[], None]
) -> None:
    """Serve until shutdown is asked for; running requests get `drain_seconds` to finish."""
    await _Server(settings, uri, started, shutdown).serve([listener])


async def serve_in_children(
    settings: Settings, uri: str, listener: socket.socket, *, shutdown: Shutdown, started: Callable[[], None]
) -> None:
    """Keep `settings.workers` children serving until shutdown is asked for; then let them finish.

    Ends with the exit code of the first child where none of them begins to serve; `started` is called when
    one does.
    """
    with _metrics_folder() as metrics:
        job = msgspec.json.encode(_Job(settings, uri), enc_hook=str) + b"\n"
        children = [_Child(job, listener, metrics) for _ in range(settings.workers)]
        runtime = Runtime(
            [Part(f"web process {n}", child.run) for n, child in enumerate(children, 1)], shutdown=shutdown
        )
        runtime.start()
        try:
            first: asyncio.Future[Any] = asyncio.gather(*(child.first for child in children))
            stopping: asyncio.Future[Any] = asyncio.ensure_future(shutdown.asked.wait())
            await asyncio.wait((first, stopping), return_when=asyncio.FIRST_COMPLETED)
            if first.done() and not shutdown.asked.is_set():
                if all(first.result()):
                    raise click.exceptions.Exit(first.result()[0])
                started()
                await stopping
        finally:
            listener.close()  # the children close theirs, too: new connections are refused, and not left waiting
            shutdown.begin()
            await runtime.close()
            await asyncio.gather(*(child.finish(shutdown.left_s + _CHILD_GRACE_S + 0.5) for child in children))


@contextlib.contextmanager
def _metrics_folder() -> Iterator[str]:
    """The folder of the children's counters. Those of killed processes, whose locks are free, are removed."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_METRICS}*"):
        with contextlib.suppress(OSError), (folder / "lock").open("r+") as claim:
            _lock(claim)
            shutil.rmtree(folder, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=_METRICS) as metrics, Path(metrics, "lock").open("w") as claim:
        _lock(claim)
        yield metrics


def _lock(file: IO[str]) -> None:
    """Raises OSError if another process holds the lock."""
    try:
        import fcntl
    except ImportError:  # Windows
        return
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def child() -> None:
    """The main function of a child process: reads its job from standard input, serves, and leaves when that
    closes.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group: only the parent decides
    logs.survive_closed_streams()
    job = msgspec.json.decode(sys.stdin.buffer.readline(), type=_Job, dec_hook=lambda kind, value: kind(value))
    logs.configure(job.settings)
    listener = socket.socket(fileno=int(sys.argv[1]))
    announce = int(sys.argv[2])

    def ready() -> None:
        os.write(announce, _READY)
        os.close(announce)

    async def work() -> None:
        shutdown = Shutdown(job.settings.drain_seconds, grace_s=_CHILD_GRACE_S)
        shutdown.listen(signal.SIGTERM)
        end_with_parent(shutdown)
        await _Server(job.settings, job.uri, ready, shutdown).serve([listener])

    try:
        with runner() as loop:
            loop.run(work())
    except XimlerError as problem:
        from ximler.cli.main import report

        sys.exit(report(problem))


def end_with_parent(shutdown: Shutdown, pipe: int = 0) -> None:
    """Request shutdown when the other end of the pipe closes, also while the event loop is blocked."""

    def wait() -> None:
        while os.read(pipe, 1024):
            pass
        with contextlib.suppress(RuntimeError):  # the event loop is closed: the process is ending anyway
            shutdown.ask()

    threading.Thread(target=wait, name="parent", daemon=True).start()


class _Child:
    """One of the serving processes. `first` is 0 once it serves, or its exit code if it ended before."""

    def __init__(self, job: bytes, listener: socket.socket, metrics: str) -> None:
        self._job = job
        self._listener = listener
        self._metrics = metrics
        self._process: subprocess.Popen[bytes] | None = None
        self._exited = asyncio.Event()
        self._serves = asyncio.Event()
        self.first: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def run(self, stop: asyncio.Event) -> None:
        """Start the process, and return when it should stop. Raises WorkerDied if it ends earlier."""
        loop = asyncio.get_running_loop()
        self._exited, self._serves = asyncio.Event(), asyncio.Event()
        ready, announce = os.pipe()
        arguments = ["-c", "from ximler.cli.serving import child; child()", str(self._listener.fileno()), str(announce)]
        try:
            # Not asyncio's subprocesses: uvloop's run Python's fork hooks, and with them the driver's, in the
            # child.
            process = self._process = subprocess.Popen(  # noqa: ASYNC220 (it returns at once)
                [sys.executable, *arguments],
                stdin=subprocess.PIPE,
                pass_fds=(self._listener.fileno(), announce),
                env={**os.environ, "PROMETHEUS_MULTIPROC_DIR": self._metrics},
            )
            threading.Thread(target=self._wait, args=(process, self._exited, loop), daemon=True).start()
        except BaseException:
            os.close(ready)
            raise
        finally:
            os.close(announce)
        loop.add_reader(ready, self._announced, ready, self._serves)
        if process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write(self._job)
                process.stdin.flush()
        await pause(stop, None, self._exited, self._serves)
        loop.remove_reader(ready)
        os.close(ready)
        if self._serves.is_set() and not self.first.done():
            self.first.set_result(0)
        if await pause(stop, None, self._exited):
            return
        code = process.returncode
        # It has no connections any more; its counters stay.
        mark_process_dead(process.pid, self._metrics)  # type: ignore[no-untyped-call]  # the library has no types here
        if not self.first.done():
            self.first.set_result(code if code > 0 else _BUG)
            await pause(stop, 2.0)  # if no child starts, the parent ends
        raise WorkerDied(f"worker died: process {process.pid} ended with {code}")

    @staticmethod
    def _announced(ready: int, serves: asyncio.Event) -> None:
        asyncio.get_running_loop().remove_reader(ready)
        if os.read(ready, 1) == _READY:
            serves.set()

    @staticmethod
    def _wait(process: "subprocess.Popen[bytes]", exited: asyncio.Event, loop: asyncio.AbstractEventLoop) -> None:
        process.wait()
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(exited.set)

    async def finish(self, timeout_s: float) -> None:
        """Close the pipe, so that the process drains and exits. Kill it if it does not, or does not serve
        yet.
        """
        process = self._process
        if process is None:
            return
        if not self._serves.is_set():
            process.kill()
        if process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
        if not await pause(self._exited, timeout_s):
            _log.error("worker killed", pid=process.pid, reason="it did not finish in time")
            process.kill()
            await pause(self._exited, 1)


class _Server(uvicorn.Server):
    def __init__(self, settings: Settings, uri: str, on_started: Callable[[], object], shutdown: Shutdown) -> None:
        from ximler.app import create

        self._on_started = on_started
        self._shutdown = shutdown
        self._problem: BaseException | None = None
        app = create(settings, uri=uri, shutdown=shutdown)

        async def remember(scope: Any, receive: Any, send: Any) -> None:
            try:
                await app(scope, receive, send)
            except BaseException as error:
                self._problem = error
                raise

        async def serve(scope: Any, receive: Any, send: Any) -> None:
            try:
                await (app if scope["type"] == "http" else remember)(scope, receive, send)
            except asyncio.CancelledError:  # `http.requests` has answered it
                if scope["type"] != "http" or not self.should_exit:
                    raise

        addresses = Addresses(settings.max_connections_per_address, settings.trusted_proxies)
        self._protocol = partial(Protocol, addresses=addresses, in_flight=app.in_flight)
        super().__init__(
            uvicorn.Config(
                serve,
                interface="asgi3",
                http=self._protocol,  # type: ignore[arg-type]  # uvicorn only calls it
                limit_concurrency=settings.max_connections,
                timeout_keep_alive=settings.keep_alive_s,
                ws="none",
                lifespan="on",
                log_config=None,
                access_log=False,
                proxy_headers=False,
                server_header=False,
            )
        )

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to `Shutdown`."""
        yield

    async def on_tick(self, counter: int) -> bool:
        self.should_exit = self.should_exit or self._shutdown.asked.is_set()
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept the connections in the backlog, which closing would reset, then shut down like uvicorn."""
        for listener in sockets or []:
            with contextlib.suppress(OSError):
                listener.listen(0)  # later ones get no answer, and are refused when they retry
            await self._accept_all(listener)
        await super().shutdown(sockets)

    async def _accept_all(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                accepted, _ = listener.accept()
            except OSError:  # the backlog is empty
                return
            with contextlib.suppress(OSError):
                await loop.connect_accepted_socket(
                    lambda: self._protocol(
                        config=self.config, server_state=self.server_state, app_state=self.lifespan.state
                    ),
                    accepted,
                )

    async def _wait_tasks_to_complete(self) -> None:
        """Let running requests finish within the rest of the drain time; then cancel them until they end."""
        self._shutdown.begin()
        state = self.server_state
        while (state.connections or state.tasks) and self._shutdown.left_s:  # noqa: ASYNC110 (uvicorn has no event)
            await asyncio.sleep(0.05)
        if state.tasks:
            _log.warning("requests cancelled", count=len(state.tasks), reason="they did not finish in time")
            await end(state.tasks, patience_s=0.5)
            await asyncio.sleep(0)  # their answers are sent

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Raises the error of the application's start; uvicorn would log a traceback and exit with 3."""
        log = logging.getLogger("uvicorn.error")
        log.disabled = True
        try:
            await super().startup(sockets)
        except SystemExit:
            raise _root(self._problem) if self._problem else Unavailable("The application did not start") from None
        finally:
            log.disabled = False
        if self.started:
            tune_collector()
            self._on_started()


def _root(problem: BaseException) -> BaseException:
    """Out of the groups that the application's parts wrap it in."""
    while isinstance(problem, BaseExceptionGroup):
        problem = problem.exceptions[0]
    return problem


def tune_collector() -> None:
    """Exclude the objects of the start, which are permanent, from garbage collection, and collect seldom."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_GC_THRESHOLDS)


def runner() -> asyncio.Runner:
    try:
        import uvloop
    except ImportError:  # Windows
        return asyncio.Runner()
    return asyncio.Runner(loop_factory=uvloop.new_event_loop)
