"""The audit log. Owns `auditlogs`; domains write through `records.write`, in the transaction of their change.

`fingerprint` and `redaction` make an entry, `sealing` and `seals` chain entries, `verification` checks them.
`search` and `export` read, `erasure` and `pruning` remove, `refusals` bounds the entries of a flood of
refusals.
"""
