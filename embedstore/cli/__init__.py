"""The command line: ``embedstore``."""

from embedstore.cli.main import main

__all__ = ["main"]
