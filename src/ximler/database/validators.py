"""`$jsonSchema` validators, generated from the Structs, so that the server catches drift too.

They are as tolerant as reading: only the specification's `required` fields are required, optional and
defaulted fields accept null, a number is any number, and unknown fields pass (other applications store theirs
in the same documents).
"""

from typing import Any

from msgspec import inspect

from ximler.database.codec import bare
from ximler.schema.document import AT_WRITE, Collection, Document

__all__ = ["validator"]

_BSON_TYPES: dict[type[inspect.Type], str] = {
    inspect.StrType: "string",
    inspect.BoolType: "bool",
    inspect.IntType: "number",
    inspect.FloatType: "number",
    inspect.DateTimeType: "date",
    inspect.BytesType: "binData",
    inspect.CustomType: "objectId",
}


def validator(collection: Collection[Any]) -> dict[str, Any]:
    """The `validator` option of the collection."""
    return {"$jsonSchema": {"title": collection.name, **_object(collection.document)}}


def _object(document: type[Document]) -> dict[str, Any]:
    properties, required = {}, []
    for field in inspect.type_info(document).fields:  # type: ignore[attr-defined]  # a Struct's info has fields
        if field.encode_name == "_id":
            continue  # indexed, unique and immutable anyway; others may use another type of id
        if rule := _rule(bare(field.type), nullable=not field.required):
            properties[field.encode_name] = rule
        if field.required and field.default is not AT_WRITE:
            required.append(field.encode_name)
    schema: dict[str, Any] = {"bsonType": "object", "properties": properties}
    if required:
        schema["required"] = required
    return schema


def _rule(kind: inspect.Type, *, nullable: bool) -> dict[str, Any]:
    match kind:
        case inspect.AnyType():
            return {}
        case inspect.LiteralType():
            return {"enum": [*kind.values, None] if nullable else list(kind.values)}
        case inspect.StructType():
            return _nullable(_object(kind.cls), nullable=nullable)  # type: ignore[arg-type]  # sub-documents are Documents
        case inspect.ListType():
            items = _rule(bare(kind.item_type), nullable=True)
            return _nullable({"bsonType": "array", **({"items": items} if items else {})}, nullable=nullable)
        case inspect.UnionType():
            return _nullable({"bsonType": "number"}, nullable=nullable)  # int | float, the only union in the schema
    return _nullable({"bsonType": _BSON_TYPES[type(kind)]}, nullable=nullable)


def _nullable(schema: dict[str, Any], *, nullable: bool) -> dict[str, Any]:
    if nullable:
        schema["bsonType"] = [schema["bsonType"], "null"]
    return schema
