"""What a collection's module is made of."""

from typing import Annotated

from bson import ObjectId

from ximler.schema.document import (
    AT_WRITE,
    Collection,
    Created,
    Document,
    Index,
    Lowercase,
    Mixed,
    ShardKey,
    Stamped,
    Trimmed,
    Uppercase,
    ascending,
    extras,
    ref,
)


class Thing(Stamped, kw_only=True):
    first_name: Trimmed
    email: Lowercase
    code: Uppercase | None = None
    owner_id: Annotated[ObjectId | None, ref("users")] = None
    extra: Mixed = None


def test_attributes_are_snake_case_and_mongodb_s_fields_camel_case() -> None:
    assert Thing.__struct_encode_fields__ == (
        "_id",
        "createdAt",
        "updatedAt",
        "firstName",
        "email",
        "code",
        "ownerId",
        "extra",
    )


def test_marks_are_found_through_optional_and_annotated_types() -> None:
    marks = extras(Thing)
    assert marks["first_name"] == {"setter": "strip"}
    assert marks["email"] == {"setter": "lower"}
    assert marks["code"] == {"setter": "upper"}
    assert marks["owner_id"] == {"ref": "users"}
    assert marks["extra"] == {"mixed": True}
    assert marks["created_at"] == {"exported": True, "erased": False}


def test_a_time_that_the_write_decides_is_known_by_identity() -> None:
    thing = Thing(first_name="Ada", email="ada@example.com")
    assert thing.created_at is AT_WRITE
    assert thing.updated_at is AT_WRITE


def test_an_index_has_mongodb_s_own_name_and_only_the_options_it_needs() -> None:
    assert ascending("userId", "-createdAt", why="x").name == "userId_1_createdAt_-1"
    assert ascending("userId", why="x").options == {}
    assert ascending("email", why="x", unique=True).options == {"unique": True}
    index = Index(keys=(("at", 1),), why="x", ttl_seconds=0, partial={"active": True})
    assert index.options == {"expireAfterSeconds": 0, "partialFilterExpression": {"active": True}}
    assert Index(keys=(("a", "text"), ("b", "text")), why="x").name == "a_text_b_text"


def test_a_collection_knows_its_timestamps_and_whether_it_deletes_softly() -> None:
    class Kept(Created, kw_only=True):
        deleted_at: None = None

    class Bare(Document, kw_only=True):
        pass

    def of(document: type[Document]) -> Collection[Document]:
        return Collection(name="x", document=document, purpose="x", owner="x", shard_key=ShardKey((), "x"))

    assert of(Thing).timestamps == ("createdAt", "updatedAt")
    assert not of(Thing).soft_delete
    assert of(Kept).timestamps == ("createdAt",)
    assert of(Kept).soft_delete
    assert of(Bare).timestamps == ()
