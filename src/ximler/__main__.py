"""The entry point of the `ximler` command. It loads the command itself, so that Ctrl-C during the load prints
no traceback.
"""

import sys

__all__ = ["main"]


def main() -> None:
    """Run the command; Ctrl-C at any time ends it with exit code 130."""
    try:
        from ximler.cli.main import main as run
    except KeyboardInterrupt:
        print("\naborted", file=sys.stderr)  # as click does
        sys.exit(130)
    run()


if __name__ == "__main__":
    main()
