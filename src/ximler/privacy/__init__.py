"""What the law gives people: a copy of all their data, and its erasure. Owns no collection; calls their owners."""
