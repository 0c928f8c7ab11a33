from typing import Any

import pytest
from structlog.testing import capture_logs

from ximler.core import errors
from ximler.core.errors import Invalid, LimitExceeded, XimlerError
from ximler.graphql.engine import Engine
from ximler.graphql.engine.errors import STATUS, describe, http_status

QUERY = "query Q($kind: String!) { fail(kind: $kind) }"


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        ("Invalid", "INVALID"),
        ("Unauthenticated", "UNAUTHENTICATED"),
        ("Forbidden", "FORBIDDEN"),
        ("NotFound", "NOT_FOUND"),
        ("Conflict", "CONFLICT"),
        ("Unavailable", "UNAVAILABLE"),
    ],
)
async def test_a_domain_error_is_returned_with_code_and_fields(lab: Any, engine: Engine, kind: str, code: str) -> None:
    with capture_logs() as logs:
        response = await engine.execute(QUERY, lab.Context(), variables={"kind": kind})
    assert response == {
        "errors": [
            {
                "message": "Told on purpose.",
                "locations": [{"line": 1, "column": 27}],
                "path": ["fail"],
                "extensions": {"code": code, "kind": code, "fields": {"name": "is wrong"}},
            }
        ],
        "data": {"fail": None},
    }
    assert logs == []


async def test_a_rejection_by_a_limit_has_a_retry_time(lab: Any, engine: Engine) -> None:
    response = await engine.execute(QUERY, lab.Context(), variables={"kind": "LimitExceeded"})
    extensions = {"code": "LIMIT_EXCEEDED", "kind": "LIMIT_EXCEEDED", "retryAfter": 2}
    assert response["errors"][0]["extensions"] == extensions


def test_a_domains_error_keeps_its_own_code_and_names_its_kind() -> None:
    class CouponExpired(Invalid):
        code = "COUPON_EXPIRED"

    error = CouponExpired("This coupon has expired.")
    assert describe(error)["extensions"] == {"code": "COUPON_EXPIRED", "kind": "INVALID"}
    assert http_status(error) == 422
    assert http_status(XimlerError("of no kind")) == 500


def test_every_kind_has_a_status() -> None:
    named = {getattr(errors, name) for name in errors.__all__}
    kinds = {each for each in named if isinstance(each, type)} - {XimlerError}
    assert kinds == set(STATUS)
    assert LimitExceeded in kinds


async def test_a_bug_is_described_in_the_log_only(lab: Any, engine: Engine) -> None:
    with capture_logs() as logs:
        response = await engine.execute(QUERY, lab.Context(), variables={"kind": "bug"})
    [error] = response["errors"]
    assert error["message"] == "Internal server error"
    assert error["extensions"] == {"code": "INTERNAL", "requestId": "req-1"}
    assert "hunter2" not in str(response)
    [entry] = logs
    assert entry["log_level"] == "error"
    assert entry["path"] == "fail"
    assert entry["operation"] == "Q"
    assert entry["request_id"] == "req-1"
    assert "hunter2" in str(entry["exc_info"])
    assert entry["exc_info"].__traceback__ is not None


async def test_a_context_without_a_request_id_is_fine(lab: Any, engine: Engine) -> None:
    response = await engine.execute(QUERY, object(), variables={"kind": "bug"})
    assert response["errors"][0]["extensions"] == {"code": "INTERNAL"}


async def test_a_bug_that_strikes_fifty_parents_is_logged_once(lab: Any) -> None:
    class Broken(lab.Context):  # type: ignore[misc]  # a fixture's class
        async def called(self, name: str, parents: int) -> None:
            raise RuntimeError("broken")

    engine = lab.make_engine()
    with capture_logs() as logs:
        response = await engine.execute("{ allUsers { subscription { id } } }", Broken())
    assert len(response["errors"]) == 50
    assert len(logs) == 1
    traceback, entries = logs[0]["exc_info"].__traceback__, 0
    while traceback:
        traceback, entries = traceback.tb_next, entries + 1
    assert entries < 10


async def test_parse_errors_say_where(engine: Engine) -> None:
    response = await engine.execute("{\n  hello(", None)
    assert response == {
        "errors": [
            {
                "message": "Syntax Error: Expected Name, found <EOF>.",
                "locations": [{"line": 2, "column": 9}],
                "extensions": {"code": "GRAPHQL_PARSE_FAILED"},
            }
        ]
    }


async def test_validation_errors_say_where_and_stop_at_ten(engine: Engine) -> None:
    response = await engine.execute("{ " + " ".join(f"nope{n}" for n in range(40)) + " }", None)
    # Forty fields at the root are too many as well; that is said first.
    assert response["errors"][0]["extensions"]["code"] == "QUERY_LIMIT_EXCEEDED"
    response = await engine.execute("{ hello " + " ".join(f"nope{n}" for n in range(19)) + " }", None)
    assert len(response["errors"]) == 10
    assert response["errors"][0]["message"] == "Cannot query field 'nope0' on type 'Query'."
    assert response["errors"][0]["locations"] == [{"line": 1, "column": 9}]
    assert response["errors"][-1]["message"].startswith("Too many validation errors")
    assert {error["extensions"]["code"] for error in response["errors"]} == {"GRAPHQL_VALIDATION_FAILED"}


async def test_messages_do_not_repeat_a_clients_long_text(engine: Engine) -> None:
    response = await engine.execute(f'{{ users(first: "{"x" * 100_000}") {{ nodes {{ id }} }} }}', None)
    assert len(response["errors"][0]["message"]) <= 500
    response = await engine.execute(
        "query($n: Int) { users(first: $n) { nodes { id } } }", None, variables={"n": "x" * 10**6}
    )
    assert len(response["errors"][0]["message"]) <= 500


async def test_the_operation_must_be_clear(engine: Engine) -> None:
    query = "query A { hello } query B { hello }"
    for name in (None, "C"):
        response = await engine.execute(query, None, operation_name=name)
        assert response["errors"][0]["extensions"]["code"] == "OPERATION_RESOLUTION_FAILURE"
        assert "A, B" in response["errors"][0]["message"]
    assert (await engine.execute(query, None, operation_name="B"))["data"] == {"hello": "Hello you"}
    assert "errors" in await engine.execute("{ hello }", None, operation_name="A")
    assert "errors" in await engine.execute("fragment F on Query { hello }", None)


async def test_errors_inside_lists_say_which_item(lab: Any, engine: Engine) -> None:
    response = await engine.execute('{ user(id: "nobody") { id } hello }', lab.Context())
    assert response["data"] == {"user": None, "hello": "Hello you"}
    assert response["errors"][0]["path"] == ["user"]
