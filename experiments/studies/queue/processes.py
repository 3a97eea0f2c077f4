"""Which process a worker is, so that another one on the same machine can tell for certain that it has ended."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PROC = Path("/proc")


def this_process() -> dict[str, Any]:
    """What tells this process from every other (JSON values); empty on a system that does not say it."""
    try:
        return {
            "boot": (PROC / "sys/kernel/random/boot_id").read_text().strip(),
            "pids": str((PROC / "self/ns/pid").readlink()),
            "pid": os.getpid(),
            "born": _state_and_birth(os.getpid())[1],
        }
    except (OSError, ValueError, IndexError):
        return {}


def has_ended(process: Mapping[str, Any]) -> bool:
    """Whether a process, as `this_process` describes it, has ended; False where that cannot be known from here.

    Within one boot of a machine and one living space of process numbers (of a container, say) a number names one
    living process, and the moment of its birth tells it from a later one of that number. The number of another machine
    or container says nothing here: its boot or its space differs. A process that has ended never comes back.
    """
    here = this_process()
    if not here or not process or any(process.get(key) != here[key] for key in ("boot", "pids")):
        return False
    try:
        os.kill(process["pid"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    try:
        state, born = _state_and_birth(process["pid"])
    except (OSError, ValueError, IndexError):
        return False
    return state == "Z" or born != process["born"]


def _state_and_birth(pid: int) -> tuple[str, int]:
    """Of the fields after the name, which may hold anything, the 1st and the 20th (proc_pid_stat(5))."""
    fields = (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    return fields[0], int(fields[19])
