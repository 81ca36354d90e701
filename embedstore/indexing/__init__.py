"""What searches a space: its vectors in memory-mapped files and FAISS indexes, all rebuilt from SQL at need."""
