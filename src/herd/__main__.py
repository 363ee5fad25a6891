"""``python -m herd``: the same as ``herd``."""

from herd.cli import main

if __name__ == "__main__":
    main()
