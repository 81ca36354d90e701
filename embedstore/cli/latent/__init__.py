"""``embedstore latent``: what can be computed in a collection's spaces."""

from embedstore.cli.latent import points, reports, spaces
from embedstore.cli.latent.group import latent_command

__all__ = ["latent_command", "points", "reports", "spaces"]
