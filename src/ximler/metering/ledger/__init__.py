"""The usage ledger: hourly rows, recorded events, and their settlement into the rows exactly once."""
