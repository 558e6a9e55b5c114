"""Which kind of process this is, told by its command line."""

import sys
from pathlib import Path


def role() -> str:
    """`web` (daphne), `worker` (celery worker), or `command` (everything else)."""
    program = Path(sys.argv[0])
    name = program.parent.name if program.name == "__main__.py" else program.name
    if name == "daphne":
        return "web"
    if name == "celery" and "worker" in sys.argv:
        return "worker"
    return "command"
