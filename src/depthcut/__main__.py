"""python -m depthcut: the same as the depthcut command."""

from depthcut.cli import main

if __name__ == "__main__":
    main()
