"""What a command that trains says of an error, and the exit code that goes with it."""

import sys

from experiments.config.errors import ConfigError
from experiments.data.reading import DataError
from experiments.record.out_of_resources import describe_exhaustion
from experiments.runner import TrainingFailedError
from experiments.terminal import print_errors


def report_error(error: Exception) -> int:
    """Say what is wrong, on standard error. What nobody expects is raised again.

    Returns: 1 for a run that failed, for want of disk or memory too; 2 for a request that is wrong.
    """
    exhaustion = describe_exhaustion(error)
    if exhaustion is None and not isinstance(error, ValueError | OSError | TrainingFailedError):
        raise error
    if exhaustion is not None or isinstance(error, TrainingFailedError):
        print(f"failed: {exhaustion or error}", file=sys.stderr)
        return 1
    print_errors(error.errors if isinstance(error, ConfigError | DataError) else [str(error)])
    return 2
