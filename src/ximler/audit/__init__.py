"""Who did what. Owns `auditlogs`; every domain above writes through `records.write`, in the transaction of its change."""
