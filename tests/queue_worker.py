"""A worker of a study in a process of its own, for tests: `queue_worker.py ROLE GRACE`, the address in the environment.

It says `ready` and goes on when told to, by a line. `open` only opens the queue. `drain` adds the trials, says that it
works, trains what it gets and says how many. `hold` claims one and says which, beats, finishes it when
told to, and says whether that was accepted.
"""

import sys
import threading
import time
from pathlib import Path

from project_paths import ROOT

sys.path.insert(0, str(ROOT))

from queue_contract import STUDY, trials

from experiments.studies.queue.storage import storage_address
from experiments.studies.queue.trial_queue import TrialQueue


def said(line: str) -> None:
    print(line, flush=True)


def drain(queue: TrialQueue) -> None:
    queue.add(trials(60))
    said("works")
    trained = 0
    while any(entry.state in ("waiting", "running") for entry in queue.latest().values()):
        queue.beat({})
        queue.requeue_stale()
        for claim in queue.claim(lambda waiting: waiting[:3]):
            time.sleep(0.01)
            trained += queue.finish(claim, 1.0, {"by": queue.worker})
    said(f"trained {trained}")


def hold(queue: TrialQueue) -> None:
    [claim] = queue.claim(lambda waiting: waiting[:1])
    said(f"holds {claim.key}")

    def live() -> None:
        while True:
            queue.beat({})
            time.sleep(0.05)

    threading.Thread(target=live, daemon=True).start()
    sys.stdin.readline()
    said(f"finished {queue.finish(claim, 99.0, {'by': queue.worker})}")


if __name__ == "__main__":
    role, grace = sys.argv[1:]
    address = storage_address(None, runs_dir=Path(), study=STUDY)
    said("ready")
    sys.stdin.readline()
    queue = TrialQueue.open(address, STUDY, direction="minimize", grace=float(grace))
    {"open": lambda queue: said("opened"), "drain": drain, "hold": hold}[role](queue)
