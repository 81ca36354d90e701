"""``embedstore probe``: the layers of language models as spaces, and what they know."""

from embedstore.cli.probe import capturing, measuring, reading
from embedstore.cli.probe.group import probe_command

__all__ = ["capturing", "measuring", "probe_command", "reading"]
