"""The audit log. Owns `auditlogs`; every domain above writes through `records.write`, in the transaction of
its change.

`fingerprint` and `redaction` make an entry, `sealing` and `seals` bind entries together, `verification`
checks them. `search` and `export` read, `erasure` and `pruning` remove, `refusals` bounds what a flood of
refusals adds.
"""
