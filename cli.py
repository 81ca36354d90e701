"""Runs the command line from a checkout: python cli.py --help."""

from embedstore.__main__ import main

if __name__ == "__main__":
    main()
