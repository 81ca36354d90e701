"""``python -m embedstore`` is the command line."""

from embedstore.cli import main

if __name__ == "__main__":
    main()
