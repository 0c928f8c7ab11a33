"""From what the driver raises to what Ximler raises: acted on by kind, naming the field, never quoting what
is stored.
"""

import asyncio
from typing import Any

import pytest
import structlog
from bson import ObjectId
from bson.errors import InvalidDocument
from pymongo import AsyncMongoClient, InsertOne
from pymongo.errors import (
    AutoReconnect,
    BulkWriteError,
    ConfigurationError,
    DocumentTooLarge,
    DuplicateKeyError,
    ExecutionTimeout,
    InvalidOperation,
    NetworkTimeout,
    NotPrimaryError,
    OperationFailure,
    PyMongoError,
    ServerSelectionTimeoutError,
    WaitQueueTimeoutError,
    WriteConcernError,
    WriteError,
)
from tests.deleting import restore, soft_delete

from ximler.core.errors import Conflict, Invalid, Unavailable, XimlerError
from ximler.core.settings import Settings
from ximler.database import Database, connect
from ximler.database.failures import DRIVER_ERRORS, DatabaseUnavailable, DocumentExists, translated

PASSWORD = "hunter2-is-my-password"


@pytest.mark.parametrize(
    "error",
    [
        AutoReconnect("connection closed"),
        NetworkTimeout("timed out"),
        NotPrimaryError("not primary"),
        ServerSelectionTimeoutError("nobody there"),
        WaitQueueTimeoutError("pool is empty"),
        ExecutionTimeout("operation exceeded time limit", 50, {"code": 50}),
        OperationFailure("interrupted at shutdown", 11600, {"code": 11600}),
        OperationFailure("not writable primary", 10107, {"code": 10107}),
        OperationFailure("host unreachable", 6),
        WriteError("primary stepped down", 189, {"code": 189}),
    ],
    ids=lambda e: f"{type(e).__name__} {getattr(e, 'code', '')}",
)
def test_an_unreachable_database_is_unavailable_with_a_hint_to_retry(error: PyMongoError) -> None:
    final = translated(error, "users")
    assert isinstance(final, DatabaseUnavailable)
    assert isinstance(final, Unavailable)
    assert final.code == "DATABASE_UNAVAILABLE"
    assert "try again" in final.message


@pytest.mark.parametrize(
    "code",
    [
        *(6, 7, 43, 50, 63, 64, 89, 91, 133, 134, 189, 202, 234, 237, 251, 262, 365, 9001),
        *(10058, 10107, 11600, 11601, 11602, 13388, 13435, 13436, 14031),
    ],
)
def test_codes_of_a_member_that_leaves_are_unavailable_however_they_arrive(code: int) -> None:
    for error in (
        OperationFailure("x", code, {"code": code}),
        WriteError("x", code, {"code": code}),
        WriteConcernError("x", code, {"code": code}),
        BulkWriteError({"writeErrors": [{"index": 0, "code": code}]}),
        BulkWriteError({"writeErrors": [], "writeConcernErrors": [{"code": code}]}),
    ):
        assert isinstance(translated(error, "users"), DatabaseUnavailable), type(error)


DUPLICATE = {"index": 0, "code": 11000, "keyPattern": {"email": 1}}


@pytest.mark.parametrize(
    ("writes", "concerns", "kind"),
    [
        ([DUPLICATE, DUPLICATE], [], DocumentExists),
        ([DUPLICATE, {"code": 121}], [], Invalid),
        ([{"code": 121}, DUPLICATE, {"code": 91}], [], DatabaseUnavailable),
        ([DUPLICATE], [{"code": 91}], DatabaseUnavailable),
        ([DUPLICATE, {"code": 112}], [], Conflict),
        ([{"code": 91}, {"code": 424242}], [], BulkWriteError),
        ([DUPLICATE], [{"code": 424242}], BulkWriteError),
    ],
)
def test_a_duplicate_never_hides_another_failure(writes: list[Any], concerns: list[Any], kind: type[Exception]) -> None:
    for order in (writes, writes[::-1]):
        assert type(translated(BulkWriteError({"writeErrors": order, "writeConcernErrors": concerns}), "users")) is kind


def test_a_uri_without_a_password_is_no_bug() -> None:
    refused = OperationFailure(
        "command find requires authentication", 13, {"code": 13, "errmsg": "command find requires authentication"}
    )
    assert isinstance(found := translated(refused, "users"), DatabaseUnavailable)
    assert "MONGODB_URI" in found.message


@pytest.mark.parametrize(
    ("error", "fields"),
    [
        (DuplicateKeyError("E11000", 11000, {"code": 11000, "keyPattern": {"email": 1}}), ["email"]),
        (DuplicateKeyError("E11000", 11000, {"code": 11000, "keyPattern": {"a": 1, "b.c": -1}}), ["a", "b.c"]),
        (
            DuplicateKeyError(
                "E11000", 11000, {"code": 11000, "errmsg": "… collection: x.users index: email_1 dup key: …"}
            ),
            ["email"],
        ),
        (DuplicateKeyError("E11000", 11000, {"code": 11000, "errmsg": "no index named"}), ["_id"]),
        (
            BulkWriteError(
                {"writeErrors": [{"index": 1, "code": 11000, "keyPattern": {"code": 1}, "keyValue": {"code": "X"}}]}
            ),
            ["code"],
        ),
    ],
)
def test_a_unique_violation_names_the_fields_that_are_taken(error: PyMongoError, fields: list[str]) -> None:
    final = translated(error, "users")
    assert isinstance(final, DocumentExists)
    assert isinstance(final, Conflict)
    assert final.fields == dict.fromkeys(fields, "is already taken")


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (DocumentTooLarge("BSON document too large"), Invalid),
        (OperationFailure("too large", 10334, {"code": 10334}), Invalid),
        (WriteError("too large", 17419, {"code": 17419}), Invalid),
        (
            WriteError(
                "object to insert too large. size", 2, {"code": 2, "errmsg": "object to insert too large. size"}
            ),
            Invalid,
        ),
        (WriteError("too deep", 15, {"code": 15}), Invalid),
        (WriteError("conflict", 112, {"code": 112}), Conflict),
        (OverflowError("MongoDB can only handle up to 8-byte ints"), Invalid),
        (UnicodeEncodeError("utf-8", "\ud800", 0, 1, "surrogates not allowed"), Invalid),
    ],
    ids=lambda e: str(e)[:30],
)
def test_errors_of_the_input_are_actionable(error: Exception, kind: type[XimlerError]) -> None:
    assert isinstance(translated(error, "users"), kind)


@pytest.mark.parametrize(
    "error",
    [
        OperationFailure("unknown operator: $foo", 2, {"code": 2, "errmsg": "unknown operator: $foo"}),
        OperationFailure("no such command", 59, {"code": 59}),
        WriteError("something new", 424242, {"code": 424242}),
        InvalidOperation("Cannot use AsyncMongoClient after close"),
        ConfigurationError("x"),
        BulkWriteError({"writeErrors": [], "writeConcernErrors": []}),
        BulkWriteError({"writeErrors": [{"code": 424242}]}),
        ValueError("x"),
    ],
    ids=lambda e: f"{type(e).__name__} {str(e)[:20]}",
)
def test_a_bug_stays_a_bug(error: Exception) -> None:
    assert translated(error, "users") is error


def test_retryable_errors_in_a_transaction_pass_unchanged() -> None:
    for error in (
        OperationFailure("write conflict", 112, {"code": 112, "errorLabels": ["TransientTransactionError"]}),
        AutoReconnect("gone", {"errorLabels": ["TransientTransactionError"]}),
    ):
        assert translated(error, "users") is error


def test_a_transaction_does_not_look_for_a_server_again_and_again() -> None:
    lost = ServerSelectionTimeoutError("nobody there")
    lost._add_error_label("TransientTransactionError")
    assert isinstance(translated(lost, "users"), DatabaseUnavailable)


def test_every_kind_of_error_that_bson_raises_is_caught() -> None:
    assert issubclass(InvalidDocument, DRIVER_ERRORS)
    assert issubclass(OverflowError, DRIVER_ERRORS)
    assert issubclass(UnicodeEncodeError, DRIVER_ERRORS)


def test_a_document_that_bson_cannot_hold_is_not_quoted() -> None:
    final = translated(InvalidDocument(f"Invalid document {{'password': '{PASSWORD}'}}: cannot encode object"), "users")
    assert isinstance(final, Invalid)
    assert PASSWORD not in final.message


@pytest.mark.parametrize(
    ("document", "fields"),
    [
        ({}, {"id", "name", "price", "interval", "limits"}),
        ({"limits": {}}, {"limits.projects", "limits.storage", "limits.apiCalls"}),
        ({"limits": {"projects": "x"}}, {"limits.projects", "limits.storage"}),
        ({"features": ["a", 5]}, {"features"}),
        ({"interval": "DAY"}, {"interval"}),
        ({"price": "29"}, {"price"}),
    ],
)
async def test_rejections_by_the_server_are_reported_by_field(
    database: Database, document: dict[str, Any], fields: set[str]
) -> None:
    for write in (
        lambda: database.raw.plans.insert_one(document | {"_id": ObjectId()}),
        lambda: database.raw.plans.insert_many([document | {"_id": ObjectId()}]),
        lambda: database.raw.plans.bulk_write([InsertOne(document | {"_id": ObjectId()})]),
    ):
        with pytest.raises(PyMongoError) as caught:
            await write()
        final = translated(caught.value, "plans")
        assert isinstance(final, Invalid)
        assert fields <= final.fields.keys()
        assert all(why for why in final.fields.values())
        assert all(name in final.message for name in fields)


async def test_a_rejection_names_the_expected_value(database: Database) -> None:
    with pytest.raises(PyMongoError) as caught:
        await database.raw.plans.insert_one({"interval": "DAY", "price": "29", "active": "yes", "features": ["a", 5]})
    final = translated(caught.value, "plans")
    assert isinstance(final, Invalid)
    assert final.fields["price"] == "must be number, not string"
    assert "MONTH" in final.fields["interval"]
    assert "bool" in final.fields["active"]
    assert final.fields["id"] == "is required"


# Each with the password in its place, or where an unescaped one ends up.
URIS = [
    f"mongodb://ada:{PASSWORD}@127.0.0.1:1/db",
    f"mongodb://ada:{PASSWORD}@nowhere.invalid/db",
    f"mongodb+srv://ada:{PASSWORD}@nowhere.invalid/db",
    f"mongodb://ada:{PASSWORD}@127.0.0.1:99999/db",
    f"mongodb://ada:{PASSWORD}@/db",
    f"mongodb://ada:{PASSWORD}/more@127.0.0.1:1/db",
    f"mongodb://ada:1234/{PASSWORD}@127.0.0.1:1/db",
    f"mongodb://ada:{PASSWORD}@more@127.0.0.1:1/db",
    f"mongodb://ada:more@{PASSWORD}@127.0.0.1:1/db",
    f"mongodb://ada:{PASSWORD}:more@127.0.0.1:1/db",
    f"mongodb://ada:{PASSWORD}%@127.0.0.1:1/db",
    f"mongodb://ada:{PASSWORD}?more@127.0.0.1:1/db",
    f"mongodb://ada:{PASSWORD}#more@127.0.0.1:1/db",
    f"mongodb://ada:{PASSWORD}[more@127.0.0.1:1/db",
    f"mongodb://ada:{PASSWORD}@127.0.0.1:1,127.0.0.1:2/db?replicaSet=x",
    f"mongodb://ada:{PASSWORD}@127.0.0.1:1/a.b",
    f"ada:{PASSWORD}@127.0.0.1:1/db",
    f"http://ada:{PASSWORD}@127.0.0.1:1/db",
    f"mongodb:/ada:{PASSWORD}@127.0.0.1:1/db",
]


@pytest.mark.slow
async def test_no_message_shows_the_password() -> None:
    async def attempt(uri: str) -> None:
        with pytest.raises(XimlerError) as caught:
            await connect(uri, settings=Settings(mongodb_uri=uri, server_selection_timeout_ms=30))
        seen = f"{caught.value!r} {caught.value.fields} {caught.value.__cause__!r}"
        assert PASSWORD not in seen, uri
        assert "1234" not in seen, uri

    with structlog.testing.capture_logs() as logs:
        await asyncio.gather(*(attempt(uri) for uri in URIS))
    assert PASSWORD not in str(logs)


async def test_a_database_that_went_away_is_unavailable_on_every_path_and_the_message_has_no_password(
    free_port: int,
) -> None:
    """Nothing listens there, and the client was made without asking."""
    from ximler.core.clock import Clock
    from ximler.database.monitoring import ConnectionState
    from ximler.schema.project import Project

    uri = f"mongodb://ada:{PASSWORD}@127.0.0.1:{free_port}/?serverSelectionTimeoutMS=30&directConnection=true"
    client: AsyncMongoClient[dict[str, Any]] = AsyncMongoClient(uri)
    gone = Database(client, "gone", clock=Clock(), state=ConnectionState())

    async def stream() -> None:
        async for _ in gone.projects.stream({}):
            pass

    async def body(transaction: Database) -> None:
        await transaction.projects.count({})

    project = Project(user_id=ObjectId(), name="x")
    operations = (
        lambda: gone.projects.find_one({}),
        lambda: gone.projects.get(project.id),
        lambda: gone.projects.find({}),
        stream,
        lambda: gone.projects.page({}),
        lambda: gone.projects.find_by("userId", [ObjectId()]),
        lambda: gone.projects.count({}),
        lambda: gone.projects.aggregate([]),
        lambda: gone.projects.insert(project),
        lambda: gone.projects.insert_many([project]),
        lambda: gone.projects.patch({}, {}),
        lambda: gone.projects.patch_many({}, {"$set": {"name": "x"}}),
        lambda: gone.projects.upsert({}, {}, fresh=project),
        lambda: gone.projects.find_and_patch({}, {}),
        lambda: soft_delete(gone.projects, {}),
        lambda: restore(gone.projects, {}),
        lambda: gone.projects.delete({}),
        lambda: gone.projects.delete_many({}),
        lambda: gone.transaction(body),
        gone.ping,
    )
    results = await asyncio.wait_for(
        asyncio.gather(*(operation() for operation in operations), return_exceptions=True), timeout=10
    )
    for result in results:
        assert isinstance(result, DatabaseUnavailable), result
        assert PASSWORD not in result.message
    await client.close()
