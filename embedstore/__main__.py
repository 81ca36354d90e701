"""``python -m embedstore``, and the command ``embedstore``, are the command line."""

from embedstore.interruption import leave_at_once


def main() -> None:
    """Answer signals, then import the command line, and run it."""
    leave_at_once()
    from embedstore.cli import main as run

    run()


if __name__ == "__main__":
    main()
