"""Every route conforms to the OpenAPI document for arbitrary input (schemathesis)."""

from collections.abc import Iterator

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
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


# The application's thread chooses among servers by `random`, at any moment.
@pytest.mark.filterwarnings("ignore:Do not use the `random` module:hypothesis.errors.HypothesisDeprecationWarning")
@pytest.mark.parametrize("mode", list(schemathesis.GenerationMode))
@pytest.mark.parametrize("examples", [12, pytest.param(200, marks=pytest.mark.soak)])
@pytest.mark.slow
def test_every_route_keeps_its_promise(api: OpenApiSchema, mode: schemathesis.GenerationMode, examples: int) -> None:
    for found in api.get_all_operations():
        operation = found.ok()
        if mode.is_negative and not operation.query:
            continue  # schemathesis finds no form that is wrong: `test_pages` sends some

        @settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        @given(operation.as_strategy(generation_mode=mode))
        def run(case: schemathesis.Case) -> None:
            case.call_and_validate(
                checks=[
                    not_a_server_error,
                    status_code_conformance,
                    content_type_conformance,
                    response_schema_conformance,
                ]
            )

        run()
