"""Bookmarks: places that a user wants to come back to."""
