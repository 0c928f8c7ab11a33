"""Telling people: e-mail for now. Knows messages and addresses, not what they are about: that is the
caller's.
"""
