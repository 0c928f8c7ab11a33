"""Accounts: registration, credentials, second factor, sessions, profile. Owns `users` and private
collections.
"""
