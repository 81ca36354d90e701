"""Writes batches of records: what must be encoded is encoded outside any lock, then all is committed."""
