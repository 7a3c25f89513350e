"""``python -m circuitbase`` is the command line."""

from __future__ import annotations

from circuitbase.cli import main

if __name__ == "__main__":
    main()
