"""Whether a run is mirrored in Weights & Biases online, offline or not at all: settled at once and without a prompt."""

import http.client
import os
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any, NamedTuple

MODES = ("auto", "online", "offline", "disabled")

# With the start of a run it stays below 20 s, which is what a user without a network may be made to wait.
PROBE_SECONDS = 5.0
# A host that did not answer is not asked again by the next trials of a study for this long.
GIVEN_UP_SECONDS = 600.0

_WANDB_MODES = {mode: mode for mode in MODES[1:]} | {"run": "online", "shared": "online", "dryrun": "offline"}
# How a proxy says that nothing answers behind it.
_GATEWAY_ERRORS = (502, 503, 504)

_asked_again_at: dict[str, float] = {}


class EffectiveMode(NamedTuple):
    """The mode a mirror works in, and what its user has to be told about it."""

    mode: str
    warning: str | None


def wanted_mode(asked: str) -> str:
    """The mode wanted by the caller or, where that is "auto", by WANDB_MODE: one of MODES.

    An explicit request beats WANDB_MODE. Each run of ours is a W&B run of its own, so "shared" is "online".
    Raises ValueError for a mode that does not exist, also when it stands in WANDB_MODE.
    """
    if asked not in MODES:
        raise ValueError(f"W&B mode {asked!r} does not exist; choose one of {', '.join(MODES)}")
    if asked == "disabled":
        return asked
    exported = os.environ.get("WANDB_MODE", "")
    if exported and exported not in _WANDB_MODES:
        known = ", ".join(_WANDB_MODES)
        raise ValueError(f"the environment has WANDB_MODE={exported!r}; unset it or choose one of {known}")
    return _WANDB_MODES[exported] if asked == "auto" and exported else asked


def resolve_mode(asked: str) -> EffectiveMode:
    """Where the run will be mirrored, settled without a prompt and within PROBE_SECONDS.

    "auto" is "online" where wandb finds a key for its host and "offline" elsewhere; `wandb offline` and
    `wandb disabled`, kept in wandb's settings files, are respected. "online" without a usable key, or with a
    host that does not answer, is "offline" with a warning. Raises ValueError as `wanted_mode` does.
    """
    wanted = wanted_mode(asked)
    if wanted in ("offline", "disabled"):
        return EffectiveMode(wanted, None)
    wandb = import_wandb()
    settings = wandb.setup().settings
    if wanted == "auto" and _WANDB_MODES[settings.mode] != "online":
        return EffectiveMode(_WANDB_MODES[settings.mode], None)
    host = settings.base_url
    try:
        key_found = _key_is_configured(host)
    except wandb.errors.Error as error:
        return EffectiveMode("offline", offline_because(f"its key for {host} is unusable: {in_short(error)}"))
    if not key_found:
        missing = f"no key is configured for {host} (`wandb login`, or WANDB_API_KEY)"
        return EffectiveMode("offline", offline_because(missing) if wanted == "online" else None)
    proxies = {"http": settings.http_proxy, "https": settings.https_proxy}
    if time.monotonic() >= _asked_again_at.get(host, 0.0):
        if host_answers(host, {scheme: proxy for scheme, proxy in proxies.items() if proxy}):
            return EffectiveMode("online", None)
        give_up(host)
    return EffectiveMode("offline", offline_because(f"{host} does not answer"))


def give_up(host: str) -> None:
    """It is not asked again for GIVEN_UP_SECONDS."""
    _asked_again_at[host] = time.monotonic() + GIVEN_UP_SECONDS


def host_answers(url: str, proxies: Mapping[str, str]) -> bool:
    """Whether anything speaks HTTP at this address, known within PROBE_SECONDS.

    Goes through `proxies` (scheme -> address) and those of the environment, as wandb does. An error page is
    an answer, and so is a certificate unknown to Python: wandb judges it by its own store.
    """
    answers: list[bool] = []
    # A lookup of a name cannot be interrupted and knows no timeout: it is left behind in its thread.
    asking = threading.Thread(target=lambda: answers.append(_ask(url, proxies)), daemon=True)
    asking.start()
    asking.join(PROBE_SECONDS)
    return bool(answers and answers[0])


def _ask(url: str, proxies: Mapping[str, str]) -> bool:
    through = urllib.request.ProxyHandler({**urllib.request.getproxies(), **proxies})
    try:
        with urllib.request.build_opener(through).open(url, timeout=PROBE_SECONDS):
            return True
    except urllib.error.HTTPError as error:
        return error.code not in _GATEWAY_ERRORS
    except urllib.error.URLError as error:
        return isinstance(error.reason, ssl.SSLCertVerificationError)
    except (OSError, http.client.HTTPException, ValueError):
        return False


def _key_is_configured(host: str) -> bool:
    """Whether wandb's own search (environment, netrc, settings files) finds credentials for the host.

    Raises wandb.errors.Error for credentials that are malformed or contradict each other.
    """
    # Private, but the only way to ask without a prompt, a login or a request; wandb is pinned below 0.32.
    from wandb.sdk.lib import wbauth

    found = wbauth.authenticate_session(host=host, source="mirror", prompt=False, update_session=False)
    return found is not None


def import_wandb() -> Any:
    """The wandb module, told to leave the terminal alone.

    Both variables are read when wandb starts, before any setting of a run exists. Without the first it prints
    dropped rows and the settings files it read; without the second its own telemetry prints connection errors
    and holds the end of the process for 20 s when the network is gone.
    """
    os.environ.setdefault("WANDB_SILENT", "true")
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    import wandb

    return wandb


def offline_because(reason: str) -> str:
    return f"W&B records offline: {reason}. `wandb sync` uploads the run later"


def in_short(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:200]}"
