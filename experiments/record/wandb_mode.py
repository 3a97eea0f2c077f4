"""Where a W&B run is to be opened, and which hosts gave no answer lately; neither user nor network is asked."""

import contextlib
import os
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote

from experiments.user_cache import cache_folder

MODES = ("auto", "online", "offline", "disabled")

# The trials of a study start every few seconds: one of them waits for a host that is away, the others do not.
SILENT_SECONDS = 600.0

# How WANDB_DISABLED, which transformers brought in, was written; wandb itself knows WANDB_MODE alone.
_WANDB_DISABLED = {
    "1": True,
    "true": True,
    "yes": True,
    "on": True,
    "0": False,
    "false": False,
    "no": False,
    "off": False,
}

_WANDB_MODES = {mode: mode for mode in MODES[1:]} | {"run": "online", "shared": "online", "dryrun": "offline"}

# Of this process, in case the cache cannot be written.
_silent_since: dict[str, float] = {}


def wanted_mode(asked: str) -> str:
    """The mode wanted by the caller or, where that is "auto", by the environment: one of MODES.

    An explicit request beats the environment, and there a true WANDB_DISABLED beats WANDB_MODE. Each run of ours is a
    W&B run of its own, so "shared" is "online".
    Raises ValueError for a value that does not exist, also when it stands in WANDB_MODE or WANDB_DISABLED.
    """
    if asked not in MODES:
        raise ValueError(f"W&B mode {asked!r} does not exist; choose one of {', '.join(MODES)}")
    if asked == "disabled":
        return asked
    exported = os.environ.get("WANDB_MODE", "")
    if exported and exported not in _WANDB_MODES:
        known = ", ".join(_WANDB_MODES)
        raise ValueError(f"the environment has WANDB_MODE={exported!r}; unset it or choose one of {known}")
    if asked != "auto":
        return asked
    if _is_disabled():
        return "disabled"
    return _WANDB_MODES[exported] if exported else asked


def overrules(asked: str) -> str | None:
    """What to tell where an explicit request beats a true WANDB_DISABLED, which it may have forgotten."""
    if asked in ("auto", "disabled") or not _is_disabled():
        return None
    return f"WANDB_DISABLED is set, but W&B mode {asked} was asked for and beats it; leave the mode at auto to heed it"


def _is_disabled() -> bool:
    exported = os.environ.get("WANDB_DISABLED", "").strip().lower()
    if exported and exported not in _WANDB_DISABLED:
        known = ", ".join(_WANDB_DISABLED)
        raise ValueError(f"the environment has WANDB_DISABLED={exported[:40]!r}; unset it or choose one of {known}")
    return _WANDB_DISABLED.get(exported, False)


def mode_to_try(wanted: str) -> str:
    """The mode to open a W&B run in: "auto" is what wandb's settings say, "online" where they say nothing.

    The settings files hold what `wandb offline` and `wandb disabled` left there.
    """
    return wanted if wanted != "auto" else _WANDB_MODES[import_wandb().setup().settings.mode]


def remember_silence(host: str) -> None:
    """The host is silent for SILENT_SECONDS: for every process of this user, or this one where the cache is closed."""
    _silent_since[host] = time.time()
    with contextlib.suppress(OSError):
        stamp = _stamp(host)
        stamp.parent.mkdir(parents=True, exist_ok=True)
        stamp.touch()


def is_silent(host: str) -> bool:
    """Whether a run of this user waited for the host in vain in the last SILENT_SECONDS."""
    since = [_silent_since[host]] if host in _silent_since else []
    with contextlib.suppress(OSError):
        since.append(_stamp(host).stat().st_mtime)
    # abs: the clock of a file server may be ahead, and one that was set back must not silence a host for long.
    return any(abs(time.time() - at) < SILENT_SECONDS for at in since)


def _stamp(host: str) -> Path:
    """An empty file, written when the host gave no answer."""
    return cache_folder() / "wandb_gave_no_answer" / quote(host, safe="")


def import_wandb() -> Any:
    """The wandb module, told to leave the terminal alone.

    Both variables are read when wandb starts, before any setting of a run exists. Without the first it asks for
    a key where none is configured and somebody sits at the terminal; so whatever the user has set, it is true.
    Without the second its own telemetry prints connection errors and holds the end of the process for 13 s when
    the network is gone.
    """
    os.environ["WANDB_SILENT"] = "true"
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    import wandb

    return wandb


def offline_because(reason: str) -> str:
    return f"W&B logs offline: {reason}. `wandb sync` uploads the run later"


def in_short(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:200]}"
