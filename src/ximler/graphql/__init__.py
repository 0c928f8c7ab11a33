"""The GraphQL interface: the engine, and one SDL file with its resolvers for every domain."""
