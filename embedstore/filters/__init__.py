"""Filters: one tree, written as a SQL-like string or as a dictionary, evaluated in SQL or over columns."""

from embedstore.filters.check import check_fields
from embedstore.filters.parse import Where, parse_where
from embedstore.filters.tree import Node

__all__ = ["Node", "Where", "check_fields", "parse_where"]
