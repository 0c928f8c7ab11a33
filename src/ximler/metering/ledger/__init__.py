"""What was used when: rows by the hour, recorded events, and what brings them into the rows exactly once."""
