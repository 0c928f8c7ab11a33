"""Liveness, readiness and metrics."""

import asyncio
import hmac
import os
from typing import Any, Literal

import msgspec
from litestar import MediaType, Request, Response, get
from litestar.datastructures import State
from litestar.openapi.datastructures import ResponseSpec
from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, CollectorRegistry, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from ximler import __version__
from ximler.core.errors import Unauthenticated, Unavailable
from ximler.database import Database
from ximler.http.problems import documented

__all__ = ["routes"]


_PATIENCE_S = 2  # shorter than the driver's timeouts: 5 s to find a server, 45 s for a response


class Health(msgspec.Struct, frozen=True):
    status: Literal["ok"]
    version: str


class Readiness(msgspec.Struct, frozen=True, omit_defaults=True):
    """`failing` names the parts of this process that have failed and are being restarted; requests are
    answered meanwhile.
    """

    status: Literal["ok", "degraded", "unavailable"]
    database: Literal["connected", "disconnected"]
    failing: list[str] = []


@get(
    "/healthz",
    opt={"api_calls": None, "quiet": True},
    tags=["operation"],
    summary="Liveness",
    responses=documented(_400="The request cannot be read"),
)
async def healthz() -> Health:
    """200 while the process responds. Depends on nothing else: restart the process when this fails."""
    return Health("ok", __version__)


@get(
    "/readyz",
    opt={"api_calls": None, "quiet": True},
    tags=["operation"],
    summary="Readiness",
    responses={
        503: ResponseSpec(Readiness, description="The database does not answer", generate_examples=False),
        **documented(_400="The request cannot be read"),
    },
)
async def readyz(state: State) -> Response[Readiness]:
    """200 if the database responds within two seconds, else 503: send no requests then."""
    database: Database = state.database
    try:
        async with asyncio.timeout(_PATIENCE_S):
            await database.ping()
    except (Unavailable, TimeoutError):
        return Response(Readiness("unavailable", "disconnected"), status_code=503)
    failing = state.runtime.failing
    return Response(Readiness("degraded" if failing else "ok", "connected", failing))


@get(
    "/metrics",
    opt={"api_calls": None, "quiet": True},
    tags=["operation"],
    summary="Prometheus metrics",
    media_type=MediaType.TEXT,
    sync_to_thread=True,
    responses=documented(
        _400="The request cannot be read", _401="The token of XIMLER_METRICS_TOKEN is missing or wrong"
    ),
)
def metrics(request: Request[Any, Any, Any], state: State) -> Response[bytes]:
    """Text format, summed over all worker processes. Requires `XIMLER_METRICS_TOKEN` as a bearer token;
    in development only if it is set.
    """
    expected = state.metrics_token
    if expected is None and not state.authentication.settings.development:
        raise Unauthenticated("Set XIMLER_METRICS_TOKEN, and send it as 'Authorization: Bearer <token>'")
    if expected is not None:
        given = request.headers.get("authorization", "").removeprefix("Bearer ")
        if not hmac.compare_digest(given.encode(), expected.encode()):
            raise Unauthenticated("Send the token of XIMLER_METRICS_TOKEN as 'Authorization: Bearer <token>'")
    registry = REGISTRY
    if os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
        registry = CollectorRegistry()
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]  # the library's own signature
    return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)


routes = (healthz, readyz, metrics)
