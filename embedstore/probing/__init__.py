"""What the layers of a language model know: its hidden states as spaces, and measurements on them."""

from embedstore.probing.capturing import States, capture

__all__ = ["States", "capture"]
