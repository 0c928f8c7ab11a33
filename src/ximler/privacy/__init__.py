"""Export of a user's data, and its erasure. Owns no collection: the fields' marks in `schema` decide."""
