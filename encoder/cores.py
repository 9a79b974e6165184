"""How many cores there are to share out."""

import os


def cores() -> int:
    """Cores this process may use: by its affinity where the system has one, else all of the machine's."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
