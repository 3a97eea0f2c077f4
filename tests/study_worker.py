"""A process that works on a study whose queue is where LORA_STUDIES_STORAGE says: the study's file, grace, pack."""

import sys
from pathlib import Path

from experiments.studies.queue.storage import storage_address
from experiments.studies.queue.trial_queue import TrialQueue
from experiments.studies.spec.study import load_study
from experiments.studies.workers.packing import Packing
from experiments.studies.workers.worker import Worker
from experiments.training.context import TrainingContext
from experiments.training.interruption import Interruption


def main(file: Path, grace: float, pack: int) -> None:
    study, folder = load_study(file), file.parent
    context = TrainingContext(study.arms[0].config)
    context.load()
    address = storage_address(None, runs_dir=folder, study=study.name)
    queue = TrialQueue.open(address, study.name, direction="minimize", grace=grace)
    packing = Packing(context, size=pack)
    Worker(study, queue, context, packing, runs_dir=folder, interruption=Interruption(), workers=2).work()


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]))
