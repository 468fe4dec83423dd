"""The command line as ``python -m slosched``."""

from slosched.cli import main

if __name__ == "__main__":
    main()
