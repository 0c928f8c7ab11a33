"""Export and erasure of a user's data, by the marks on fields in `schema`. Owns no collection."""
