"""``python -m fundamentallm``: the command line."""

from fundamentallm.cli.commands import main

if __name__ == "__main__":
    main()
