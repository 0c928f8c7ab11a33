"""Batches of BSON give what PyMongo's own give, whether or not PyMongo still works as we know it."""

import pytest
from bson import decode_all
from pymongo.asynchronous.cursor import AsyncRawBatchCursor
from pymongo.errors import OperationFailure

from ximler.database import Database, batches
from ximler.database.batches import RawBatches
from ximler.schema.audit_log import AuditLog


async def streams(database: Database, kind: type[AsyncRawBatchCursor], **query: object) -> list[bytes]:
    return [bytes(stream) async for stream in kind(database.raw["auditlogs"], **query)]  # type: ignore[arg-type]  # find's


@pytest.mark.slow
@pytest.mark.parametrize("count", [0, 1, 7, 250])
@pytest.mark.parametrize("known", [True, False])
async def test_batches_equal_the_drivers_for_any_number_and_size(
    database: Database, monkeypatch: pytest.MonkeyPatch, count: int, known: bool
) -> None:
    assert batches._KNOWN, "this PyMongo keeps its raw replies elsewhere: reading costs a third more"
    monkeypatch.setattr(batches, "_KNOWN", known)
    await database.audit_logs.insert_many([AuditLog(action=f"a{n}", resource="r" * (1 + 50 * n)) for n in range(count)])
    for query in ({"filter": {}}, {"filter": {}, "batch_size": 2}, {"filter": {"action": "a3"}}, {"limit": 3}):
        theirs = await streams(database, AsyncRawBatchCursor, **query)
        ours = await streams(database, RawBatches, **query)
        assert b"".join(ours) == b"".join(theirs)
        assert [decode_all(stream) for stream in ours] == [decode_all(stream) for stream in theirs]


async def test_rejections_by_the_server_raise_the_drivers_error(database: Database) -> None:
    with pytest.raises(OperationFailure, match="unknown top level operator"):
        await streams(database, RawBatches, filter={"$where?": 1})
