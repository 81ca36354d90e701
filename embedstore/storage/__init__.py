"""The truth: records, vectors and metadata in SQL, and the protocol by which they are committed."""
