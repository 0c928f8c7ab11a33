"""Translates the driver's errors to Ximler's.

Inside a transaction, errors that the driver retries are returned unchanged: `with_transaction` must see them.
"""

import re
from typing import Any

from bson.errors import InvalidDocument
from pymongo.errors import (
    AutoReconnect,
    BulkWriteError,
    ConnectionFailure,
    DocumentTooLarge,
    OperationFailure,
    PyMongoError,
    ServerSelectionTimeoutError,
    WaitQueueTimeoutError,
    WriteError,
)

from ximler.core.errors import Conflict, Invalid, Unavailable

__all__ = [
    "DRIVER_ERRORS",
    "DatabaseUnavailable",
    "DocumentExists",
    "RefusedChanges",
    "reason",
    "redacted",
    "translated",
]

DRIVER_ERRORS = (PyMongoError, InvalidDocument, OverflowError, UnicodeEncodeError)

_VALIDATION = 121
_TOO_LARGE = frozenset({10334, 17419, 17420})
_TOO_DEEP = 15
_UNAUTHORIZED = 13
_DUPLICATE = 11000
_WRITE_CONFLICT = 112
_PARALLEL_ARRAYS = 171
_BAD_VALUE, _CANNOT_BACKFILL, _CONFLICTING_PATHS = 2, 34, 40
_WRONG_KIND = frozenset({14, 28, 16554, 16556, 40400})  # of a path's value, or of an operand in a pipeline
# Codes of a server that is shutting down, stepping down, out of reach or out of time. The same request may
# succeed later.
_UNAVAILABLE = frozenset(
    {
        6, 7, 9001,  # HostUnreachable, HostNotFound, SocketException
        24, 46,  # LockTimeout, LockBusy
        43, 136, 175, 237,  # CursorNotFound, CappedPositionLost, QueryPlanKilled, CursorKilled: the server dropped the cursor
        50, 89, 202, 262,  # MaxTimeMSExpired, NetworkTimeout, NetworkInterfaceExceededTimeLimit, ExceededTimeLimit
        63, 150, 234, 13388,  # StaleShardVersion, StaleEpoch, RetryChangeStream, StaleConfig
        64, 100,  # WriteConcernFailed, UnsatisfiableWriteConcern: applied here, not yet by a majority
        91, 11600,  # ShutdownInProgress, InterruptedAtShutdown
        133, 134,  # FailedToSatisfyReadPreference, ReadConcernMajorityNotAvailableYet
        189, 10058, 10107, 11602, 13435, 13436,  # the member is no longer, or not yet, the primary
        208, 365,  # TooManyLogicalSessions, TemporarilyUnavailable
        225, 251, 290,  # TransactionTooOld, NoSuchTransaction, TransactionExceededLifetimeLimitSeconds
        317, 384,  # ConnectionPoolExpired, ConnectionError
        11601,  # Interrupted: an operator killed it
        14031,  # OutOfDiskSpace
    }
)  # fmt: skip


class DatabaseUnavailable(Unavailable):
    code = "DATABASE_UNAVAILABLE"


class DocumentExists(Conflict):
    """A unique index rejected the write. `fields` names the fields that are taken; `positions` the rejected
    documents of a bulk of which the others were written.
    """

    code = "ALREADY_EXISTS"
    positions: frozenset[int] = frozenset()


class RefusedChanges(Conflict):
    """A document does not take a change, because of a value that it has.

    Of an unordered bulk, `reasons` says why by the change's position. Its other changes are done, except
    those that met a unique index.
    """

    reasons: dict[int, str] = {}  # noqa: RUF012 (replaced, never changed)


def translated(error: BaseException, collection: str) -> BaseException:
    """Ximler's error for a driver's; the same error where it is a bug of ours."""
    if isinstance(error, ServerSelectionTimeoutError):
        # Also inside a transaction, which would otherwise retry server selection for two minutes.
        return DatabaseUnavailable("The database does not answer: try again in a moment")
    if isinstance(error, PyMongoError) and error.has_error_label("TransientTransactionError"):
        return error
    if isinstance(error, DocumentTooLarge):
        return Invalid(f"This document of {collection} is larger than the 16 MB that MongoDB can store")
    if isinstance(error, WaitQueueTimeoutError | AutoReconnect | ConnectionFailure):
        return DatabaseUnavailable("The database does not answer: try again in a moment")
    if isinstance(error, BulkWriteError):
        return _bulk(error, collection)
    if isinstance(error, OperationFailure):
        details: dict[str, Any] = dict(error.details or {})
        if isinstance(error, WriteError) or "code" not in details:
            details.setdefault("code", error.code)
        return _operation(details, collection) or error
    if isinstance(error, UnicodeEncodeError):
        return Invalid("The text contains an unpaired surrogate: it is not valid Unicode")
    if isinstance(error, OverflowError):
        return Invalid("A number does not fit in 64 bits: send it as a string")
    if isinstance(error, InvalidDocument):
        # The driver's message quotes the document with its secrets.
        return Invalid(f"This cannot be stored in {collection} or compared with stored values: BSON has no such type")
    return error


def _bulk(error: BulkWriteError, collection: str) -> BaseException:
    """One error for all of a bulk's failures: the gravest, because a duplicate must not hide another failure.

    A bug comes first, then a transient failure, then a rejected document; a duplicate only if all are
    duplicates.
    """
    failures = [*(error.details.get("writeErrors") or []), *(error.details.get("writeConcernErrors") or [])]
    found = [_operation(details, collection) or error for details in failures] or [error]
    ranks = (DocumentExists, RefusedChanges, Conflict, Invalid, DatabaseUnavailable, BulkWriteError)
    gravest = max(found, key=lambda e: next(rank for rank, kind in enumerate(ranks) if isinstance(e, kind)))
    if isinstance(gravest, RefusedChanges):
        gravest.reasons = {d["index"]: _message(d) for d in failures if d.get("code") != _DUPLICATE}
    elif isinstance(gravest, DocumentExists):
        gravest.positions = frozenset(details["index"] for details in failures)
    return gravest


def _operation(details: dict[str, Any], collection: str) -> BaseException | None:
    code = details.get("code")
    if code == _DUPLICATE:
        taken = list(details.get("keyPattern") or {})
        if not taken:
            found = re.search(r"index: (\S+?)_-?1", _message(details))
            taken = [found[1]] if found else ["_id"]
        return DocumentExists(
            f"{collection}: {' and '.join(taken)} already taken", fields=dict.fromkeys(taken, "is already taken")
        )
    if code == _VALIDATION:
        fields = _failed_rules((details.get("errInfo") or {}).get("details") or {})
        reasons = "; ".join(f"{name} {why}" for name, why in fields.items()) or "it does not match the schema"
        return Invalid(f"{collection} refused the document: {reasons}", fields=fields)
    if code == _BAD_VALUE and "Loop" in _message(details):
        return Invalid.field("within.polygon", "its edges cross or touch, or two of its vertices are the same")
    if code in _TOO_LARGE or (code == _BAD_VALUE and "too large" in _message(details)):
        return Invalid(f"This document of {collection} would be larger than the 16 MB that MongoDB can store")
    if code == _TOO_DEEP:
        return Invalid(f"This document of {collection} is nested deeper than MongoDB's 100 levels")
    if code == _UNAUTHORIZED and _message(details).endswith("requires authentication"):
        return DatabaseUnavailable("The database requires a user and a password: add them to MONGODB_URI")
    if code in _UNAVAILABLE:
        return DatabaseUnavailable("The database did not answer in time: try again in a moment")
    no_list = code == _BAD_VALUE and any(part in _message(details) for part in ("must be an array", "non-array"))
    if code in _WRONG_KIND or no_list:
        # A path through or to a value of another type inside a Mixed value. Not quoted: it is user data.
        return RefusedChanges(
            f"{collection}: the stored value on the path of this change is of another kind: read it again "
            "('ximler db repair' removes nulls)"
        )
    if code == _PARALLEL_ARRAYS:  # another application stored one of them
        names = " and ".join(re.findall(r"\[(\w+)\]", _message(details))) or "two fields of an index"
        return RefusedChanges(f"{collection}: {names} of a document cannot both be arrays: repair it in the database")
    if code == _CANNOT_BACKFILL:
        return Invalid(f"{collection}: a list position lies too far past the list's end")
    if code == _CONFLICTING_PATHS:
        return Invalid(f"{collection}: two parts of this change touch the same path")
    if code == _WRITE_CONFLICT:
        return Conflict(f"{collection}: changed by another request at the same moment: try again")
    return None


def _message(details: dict[str, Any]) -> str:
    return str(details.get("errmsg", ""))


def _failed_rules(details: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Field → reason, from the server's report of a failed `$jsonSchema`."""
    found: dict[str, str] = {}
    for rule in details.get("schemaRulesNotSatisfied", ()):
        for missing in rule.get("missingProperties", ()):
            found[prefix + missing] = "is required"
        for failed in rule.get("propertiesNotSatisfied", ()):
            name = prefix + failed["propertyName"]
            nested: dict[str, str] = {}
            reason = "is not allowed by the schema"
            for part in failed.get("details", ()):
                nested |= _failed_rules({"schemaRulesNotSatisfied": [part]}, f"{name}.")
                if part.get("operatorName") == "bsonType":
                    allowed = part.get("specifiedAs", {}).get("bsonType")
                    reason = f"must be {allowed}, not {part.get('consideredType')}"
                elif part.get("operatorName") == "enum":
                    reason = f"must be one of {part.get('specifiedAs', {}).get('enum')}"
            found |= nested or {name: reason}
    return found


def redacted(uri: str) -> str:
    """The URI without credentials and options, safe to print."""
    return re.sub(r"//.*@", "//", uri, flags=re.DOTALL).split("?", 1)[0]


def reason(error: Exception) -> str:
    """The first part of a driver's message: the rest holds timeouts, topologies and whole replies."""
    text = str(error).split(", Timeout:", 1)[0].split(", full error:", 1)[0]
    return redacted(text.split(" (configured timeouts", 1)[0]) or type(error).__name__
