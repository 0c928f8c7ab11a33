"""Every route keeps what the OpenAPI document promises, whatever is sent (schemathesis)."""

from collections.abc import Iterator

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.checks import not_a_server_error
from schemathesis.python import asgi
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from schemathesis.specs.openapi.schemas import OpenApiSchema

from ximler.app import create
from ximler.core.settings import Settings
from ximler.database import Database


@pytest.fixture(scope="module")
def api(_worker_database: Database, mongodb_uri: str) -> Iterator[OpenApiSchema]:
    """The document, of an application that schemathesis starts in a loop of its own."""
    ours = Settings(secret_key="k" * 32, database=_worker_database.name, environment="development", worker=False)
    yield schemathesis.openapi.from_asgi("/docs/openapi.json", create(ours, uri=mongodb_uri))
    asgi.shutdown_lifespans()


@schemathesis.pytest.from_fixture("api").parametrize()
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_a_route_keeps_its_promise(case: schemathesis.Case) -> None:
    case.call_and_validate(
        checks=[
            not_a_server_error,
            status_code_conformance,
            content_type_conformance,
            response_schema_conformance,
        ]
    )
