"""The state of record: the ledger's files and the leases on them, on any file system."""
