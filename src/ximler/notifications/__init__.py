"""Notifications: the inbox, and e-mail. Knows messages and addresses; the callers know the subject matter."""
