"""Notifications: the inbox, and e-mail. Owns messages and addresses; callers supply the content."""
