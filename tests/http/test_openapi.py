"""Every route conforms to the OpenAPI document for arbitrary input (schemathesis)."""

from collections.abc import Iterator
from typing import Any

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
from tests.serving import Client

from ximler.app import create
from ximler.core.settings import Settings
from ximler.database import Database


@pytest.fixture(scope="module")
def api(_worker_database: Database, mongodb_uri: str) -> Iterator[OpenApiSchema]:
    """The document, of an application that schemathesis starts in a loop of its own."""
    ours = Settings(
        secret_key="a secret key that is only for the tests",  # sessions of the fixture `client` hold here, too
        database=_worker_database.name,
        environment="development",
        worker=False,
        session_rate=10_000,
        session_burst=1_000_000,
        address_burst=1_000_000,
    )
    yield schemathesis.openapi.from_asgi("/docs/openapi.json", create(ours, uri=mongodb_uri))
    asgi.shutdown_lifespans()


@pytest.fixture
async def signed_in(client: Client) -> dict[str, Any]:
    """What a user's requests have: their session and their project."""
    await client.join("ada@example.com")
    project = (await client.create())["createProject"]["id"]
    return {"headers": {"Authorization": f"Bearer {client.token}"}, "project": project}


schemathesis.serializer.alias("application/offset+octet-stream", "application/octet-stream")
# What the requests after them need: the session and the project.
_ENDS_WHAT_OTHERS_NEED = {
    ("/v1/session", "delete"),
    ("/v1/session/refresh", "post"),
    ("/v1/projects/{project}", "delete"),
}
_STREAMS = "/v1/projects/{project}/canvas/changes"


# The application's thread chooses among servers by `random`, at any moment.
@pytest.mark.filterwarnings("ignore:Do not use the `random` module:hypothesis.errors.HypothesisDeprecationWarning")
@pytest.mark.parametrize("mode", list(schemathesis.GenerationMode))
@pytest.mark.parametrize("examples", [6, pytest.param(300, marks=pytest.mark.soak)])
@pytest.mark.parametrize("known", [False, True], ids=["anonymous", "signed in"])
@pytest.mark.slow
def test_every_route_keeps_its_promise(
    api: OpenApiSchema, mode: schemathesis.GenerationMode, examples: int, known: bool, request: pytest.FixtureRequest
) -> None:
    mine: dict[str, Any] = request.getfixturevalue("signed_in") if known else {"headers": {}}
    for found in api.get_all_operations():
        operation = found.ok()
        if mode.is_negative and not operation.query:
            continue  # schemathesis finds no form that is wrong: `test_pages` sends some
        secured = bool(operation.definition.raw.get("security"))
        if known and (not secured or operation.path == _STREAMS):
            continue  # the same as anonymously; or endless
        if known and (operation.path, operation.method) in _ENDS_WHAT_OTHERS_NEED:
            continue
        most = examples if secured == known else 1  # anonymously the answer is always 401

        @settings(max_examples=most, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        @given(operation.as_strategy(generation_mode=mode))
        def run(case: schemathesis.Case) -> None:
            if known and "project" in case.path_parameters:
                case.path_parameters["project"] = mine["project"]
            case.call_and_validate(
                headers=mine["headers"],
                timeout=60,  # the default of ten seconds passes on a busy machine
                checks=[
                    not_a_server_error,
                    status_code_conformance,
                    content_type_conformance,
                    response_schema_conformance,
                ],
            )

        run()
