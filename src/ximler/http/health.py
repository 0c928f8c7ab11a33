"""For whoever runs Ximler: is it alive, can it work, what is it doing?"""

import os
from typing import Literal

import msgspec
from litestar import Response, get
from litestar.datastructures import State
from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, CollectorRegistry, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from ximler import __version__
from ximler.core.errors import Unavailable
from ximler.database import Database

__all__ = ["healthz", "metrics", "readyz"]


class Health(msgspec.Struct, frozen=True):
    status: Literal["ok"]
    version: str


class Readiness(msgspec.Struct, frozen=True):
    status: Literal["ok", "unavailable"]
    database: Literal["connected", "disconnected"]


@get("/healthz", tags=["operation"], summary="Is the process alive?")
async def healthz() -> Health:
    """Answers as long as the process can. Touches nothing else: restart it when this fails."""
    return Health("ok", __version__)


@get("/readyz", tags=["operation"], summary="Can it do its work?")
async def readyz(state: State) -> Response[Readiness]:
    """200 when the database answers, 503 when it does not: send no requests meanwhile."""
    database: Database = state.database
    try:
        await database.ping()
    except Unavailable:
        return Response(Readiness("unavailable", "disconnected"), status_code=503)
    return Response(Readiness("ok", "connected"))


@get("/metrics", tags=["operation"], summary="Numbers for Prometheus", sync_to_thread=True)
def metrics() -> Response[bytes]:
    """Text format, summed over all worker processes."""
    registry = REGISTRY
    if os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
        registry = CollectorRegistry()
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]  # the library's own signature
    return Response(generate_latest(registry), headers={"Content-Type": CONTENT_TYPE_LATEST})
