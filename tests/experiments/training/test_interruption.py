"""The end of a command's process: its exit code, whatever signals come, and never a traceback."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from project_paths import CONFIGS, ROOT

COMMAND = """
import os, signal, sys, time
from experiments.training.interruption import run_command

def command():
    print("said", flush=True)
    {what}
    return 3

{before}
run_command(command)
"""


def ended(what: str, before: str = "") -> tuple[int, str]:
    code = COMMAND.format(what=what, before=before)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout + done.stderr


def test_a_command_ends_its_process_with_its_code() -> None:
    assert ended("pass") == (3, "said\n")


def test_an_interruption_that_the_command_does_not_heed_ends_it_with_130() -> None:
    assert ended("signal.raise_signal(signal.SIGINT)") == (130, "said\n")


@pytest.mark.parametrize(
    "before",
    [
        "import atexit; atexit.register(lambda: signal.raise_signal(signal.SIGINT))",
        "import threading; threading._register_atexit(lambda: signal.raise_signal(signal.SIGINT))",
        "class Late:\n    def __del__(self): os.kill(os.getpid(), signal.SIGINT)\nlate = Late()",
    ],
    ids=["at exit", "at the end of threads", "while modules are torn down"],
)
def test_a_signal_after_the_command_changes_neither_code_nor_words(before: str) -> None:
    assert ended("pass", before) == (3, "said\n")


@pytest.mark.slow
def test_a_run_that_is_interrupted_twice_at_any_moment_prints_no_traceback_and_goes_on(tmp_path: Path) -> None:
    asked = [sys.executable, str(ROOT / "experiments" / "run.py"), "--config", str(CONFIGS / "planted.yaml")]
    asked += ["--set", "steps=150", "--wandb", "disabled", "--runs-dir", str(tmp_path)]
    for moment in range(20):
        process = subprocess.Popen(asked, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        time.sleep(1.0 + 0.2 * moment)  # from the heavy imports to the end
        for pause in (0.05, 0.0):
            process.send_signal(signal.SIGINT)
            time.sleep(pause)
        out, err = process.communicate(timeout=60)
        assert process.returncode in (0, 130), err
        assert "Traceback" not in out + err, (moment, err)
    assert subprocess.run(asked, capture_output=True).returncode == 0
