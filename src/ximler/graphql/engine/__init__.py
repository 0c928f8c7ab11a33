"""The GraphQL engine: SDL and resolvers in, an ASGI callable out. Knows no domain.

    schema = build([accounts, billing, projects])        # modules, each with its .graphql beside it
    app = GraphQLApp(Engine(schema), context_factory)

graphql-core parses, validates and describes the schema; plans made from the query execute it (`plan`,
`execution`, `compiled`).
"""

from ximler.graphql.engine.connections import Connection, Page, page_size
from ximler.graphql.engine.engine import Engine, Prepared, Response
from ximler.graphql.engine.fields import Shared
from ximler.graphql.engine.http import ContextFactory, GraphQLApp, refusal
from ximler.graphql.engine.limits import Limits
from ximler.graphql.engine.persisted import read_trusted
from ximler.graphql.engine.registry import Resolvers
from ximler.graphql.engine.schema import Schema, SchemaError, build
from ximler.graphql.engine.selected import Selected

__all__ = [
    "Connection",
    "ContextFactory",
    "Engine",
    "GraphQLApp",
    "Limits",
    "Page",
    "Prepared",
    "Resolvers",
    "Response",
    "Schema",
    "SchemaError",
    "Selected",
    "Shared",
    "build",
    "page_size",
    "read_trusted",
    "refusal",
]
