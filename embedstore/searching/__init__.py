"""Answers queries: filters over columns, keywords, plans, fusion and diversity."""
