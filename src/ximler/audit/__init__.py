"""Who did what. Owns `auditlogs`; every domain above writes through `records.write`, in the transaction of its change.

`fingerprint` and `redaction` make an entry, `sealing` and `seals` bind entries together, `verification` checks them with
the help of `examination`, `search` and `export` read them, `erasure` and `pruning` take out what must go, `refusals` keeps
floods small.
"""
