"""The run folder: identity, lock, atomic files, digests, ledger, metrics.json. No torch here."""
