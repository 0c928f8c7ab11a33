"""The building blocks of a collection's module: a `Document` Struct, `Index`es, and the `Collection`.

Python attributes are snake_case; MongoDB's fields are their camelCase. Fields without a default are
`required` in the specification. `None` is never stored: an optional field that is None is absent.
"""

from datetime import UTC, datetime
from functools import cache
from typing import Annotated, Any, ClassVar, Generic, Literal, TypeVar, get_args, get_type_hints

import msgspec
from bson import ObjectId
from msgspec import Meta, field

__all__ = [
    "AT_WRITE", "SPECIFIED_NAMES", "Collection", "Created", "Document", "Index", "Internal", "Kept", "Lowercase", "Mixed",
    "Number", "Record", "ShardKey", "Stamped", "Theirs", "Trimmed", "Uppercase", "UserId", "ascending", "erased_as", "extras",
    "ref",
]  # fmt: skip

# The specification's collections, in its order. All others are private to Ximler.
SPECIFIED_NAMES = (
    "users", "plans", "subscriptions", "payments", "usage", "projects", "apikeys", "notifications", "coupons", "auditlogs",
)  # fmt: skip

# Mongoose's Number. Counts are `int`; values that may have a fraction are `Number`.
Number = int | float

# The specification's setters, applied by our writes as by Mongoose's.
Trimmed = Annotated[str, Meta(extra={"setter": "strip"})]
Lowercase = Annotated[str, Meta(extra={"setter": "lower"})]
Uppercase = Annotated[str, Meta(extra={"setter": "upper"})]

# Any JSON-like value. Null, missing and {} are the same; keys are checked on every write (see
# database.mixed).
Mixed = Annotated[Any, Meta(extra={"mixed": True})]


T = TypeVar("T")

# Privacy marks. Every field of a document that belongs to a user has one: whether the user's export contains
# it, and whether it is erased with the account. `privacy` exports and erases by these marks. Documents of
# which nothing is kept are deleted.
Theirs = Annotated[T, Meta(extra={"exported": True, "erased": True})]  # the user's own data
Record = Annotated[T, Meta(extra={"exported": True, "erased": False})]  # bookkeeping, which does not identify the user
Internal = Annotated[T, Meta(extra={"exported": False, "erased": True})]  # hashes, tokens, search terms
Kept = Annotated[T, Meta(extra={"exported": False, "erased": False})]


def erased_as(value: Any) -> Any:
    """Mark of a field that is exported, and replaced by `value` when the account is erased."""
    return Meta(extra={"exported": True, "erased": True, "replacement": value})


class Document(msgspec.Struct, rename="camel", kw_only=True, gc=False):
    """The base of all stored documents. `gc=False`: BSON has no cycles, and reads take 0.6 × the time.

    `FORGIVEN` names fields that read as their default if another application stored a value of a wrong type.
    Other such documents are unreadable, because a default must never grant anything.
    """

    FORGIVEN: ClassVar[tuple[str, ...]] = ()


class Identified(Document, kw_only=True):
    id: Record[ObjectId] = field(name="_id", default_factory=ObjectId)


# Placeholder for a time that the write sets by the server's clock. Compared by identity: any other time is
# kept.
AT_WRITE = datetime(1970, 1, 1, tzinfo=UTC)


class Created(Identified, kw_only=True):
    """`createdAt` is the server's time of the insert. If another application omitted it, it is taken from the
    id.
    """

    created_at: Record[datetime] = AT_WRITE


class Stamped(Created, kw_only=True):
    """`updatedAt` is set by every write. If another application omitted it, it reads as `createdAt`."""

    updated_at: Record[datetime] = AT_WRITE


D = TypeVar("D", bound=Document)
Direction = Literal[1, -1, "text", "2dsphere"]


class Index(msgspec.Struct, frozen=True, kw_only=True):
    """One index. `ours` marks indexes beyond the specification, which a Mongoose `syncIndexes()` would drop:
    on the specification's collections they serve speed, never an invariant. `why` names its queries.
    """

    keys: tuple[tuple[str, Direction], ...]
    why: str
    unique: bool = False
    ttl_seconds: int | None = None
    partial: dict[str, Any] | None = None
    collation: dict[str, Any] | None = None
    ours: bool = False

    @property
    def name(self) -> str:
        """MongoDB's own default name, the same as Mongoose's: `userId_1_createdAt_-1`."""
        return "_".join(f"{key}_{direction}" for key, direction in self.keys)

    @property
    def options(self) -> dict[str, Any]:
        """The options of `createIndexes`, without key and name."""
        chosen: dict[str, Any] = {}
        if self.unique:
            chosen["unique"] = True
        if self.ttl_seconds is not None:
            chosen["expireAfterSeconds"] = self.ttl_seconds
        if self.partial is not None:
            chosen["partialFilterExpression"] = self.partial
        if self.collation is not None:
            chosen["collation"] = self.collation
        return chosen


def ascending(*fields: str, why: str, unique: bool = False, ours: bool = False) -> Index:
    """The common index: ascending on one or more fields; `-name` is descending."""
    keys: list[tuple[str, Direction]] = [(f[1:], -1) if f.startswith("-") else (f, 1) for f in fields]
    return Index(keys=tuple(keys), why=why, unique=unique, ours=ours)


class ShardKey(msgspec.Struct, frozen=True):
    """The shard key for a sharded cluster. Without fields the collection stays on one shard."""

    fields: tuple[tuple[str, Literal[1, "hashed"]], ...]
    why: str


class Collection(msgspec.Struct, Generic[D], frozen=True, kw_only=True):
    """One collection of the catalogue. `owner` is the only package under `ximler` that writes it."""

    name: str
    document: type[D]
    purpose: str
    owner: str
    indexes: tuple[Index, ...] = ()
    shard_key: ShardKey

    @property
    def private(self) -> bool:
        """Whether it is outside the specification. Only the owner imports the schema module of a private
        collection.
        """
        return self.name not in SPECIFIED_NAMES

    @property
    def marks(self) -> dict[str, dict[str, Any]]:
        """The marks of each field, by its name in MongoDB."""
        return _marks(self.document)

    @property
    def user_field(self) -> str | None:
        """The field with the id of the document's user."""
        return next((name for name, marks in self.marks.items() if marks.get("ref") == "users"), None)

    @property
    def exported(self) -> tuple[str, ...]:
        """The fields that a user's export contains."""
        return tuple(name for name, marks in self.marks.items() if marks.get("exported"))

    @property
    def kept(self) -> tuple[str, ...]:
        """The fields that stay when the user is erased."""
        return tuple(name for name, marks in self.marks.items() if not marks.get("erased"))

    @property
    def replacements(self) -> dict[str, Any]:
        """The fields that are replaced when the user is erased, with their replacements."""
        return {name: marks["replacement"] for name, marks in self.marks.items() if "replacement" in marks}

    @property
    def erasure(self) -> Literal["nothing", "fields", "documents"]:
        """The effect of erasing a user. Documents of which only ids and
        timestamps would remain are deleted."""
        if self.user_field is None or len(self.kept) == len(self.marks):
            return "nothing"
        bare = {"_id", "createdAt", "updatedAt", self.user_field}
        return "fields" if self.replacements or not bare.issuperset(self.kept) else "documents"

    @property
    def soft_delete(self) -> bool:
        return "deleted_at" in self.document.__struct_fields__

    @property
    def timestamps(self) -> tuple[str, ...]:
        return tuple(
            encoded
            for name, encoded in zip(
                self.document.__struct_fields__, self.document.__struct_encode_fields__, strict=True
            )
            if name in ("created_at", "updated_at")
        )


# The user to whom the document belongs. Ids of other users have no `ref`.
UserId = Annotated[ObjectId, Meta(extra={"ref": "users", "exported": False, "erased": False})]


@cache
def _marks(document: type[Document]) -> dict[str, dict[str, Any]]:
    names = zip(document.__struct_fields__, document.__struct_encode_fields__, strict=True)
    found = extras(document)
    return {encoded: found[name] for name, encoded in names}


def ref(target: str) -> Any:
    """Annotation of a reference to another collection: `Annotated[ObjectId, ref("users")]`."""
    return Meta(extra={"ref": target})


def extras(document: type[Document]) -> dict[str, dict[str, Any]]:
    """The setter, ref and mixed marks of a document's fields, by attribute name."""
    found = {}
    for name, hint in get_type_hints(document, include_extras=True).items():
        marks: dict[str, Any] = {}
        for part in _annotations(hint):
            marks |= part.extra or {}
        found[name] = marks
    return found


def _annotations(hint: Any) -> list[Meta]:
    return [meta for part in get_args(hint) for meta in ([part] if isinstance(part, Meta) else _annotations(part))]
