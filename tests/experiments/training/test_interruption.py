"""The end of a command's process: its exit code, whatever signals come, and never a traceback."""

import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from project_paths import CONFIGS, ROOT

from experiments.training.interruption import Interruption

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
    assert ended("signal.raise_signal(signal.SIGINT)") == (130, "said\ninterrupted; the same command goes on\n")


def test_an_interruption_inside_an_import_ends_the_process_without_raising_there(tmp_path: Path) -> None:
    (tmp_path / "heavy.py").write_text(
        "import signal\ntry: signal.raise_signal(signal.SIGINT)\nfinally: print('raised')"
    )
    what = f"sys.path.insert(0, {str(tmp_path)!r}); import heavy"
    assert ended(what) == (130, "said\ninterrupted; the same command goes on\n")


def test_a_command_in_the_background_goes_on_at_ctrl_c() -> None:
    ignored = "signal.signal(signal.SIGINT, signal.SIG_IGN)"
    assert ended("signal.raise_signal(signal.SIGINT)", ignored) == (3, "said\n")


def test_a_process_that_was_started_with_ctrl_c_blocked_listens_to_it() -> None:
    blocked = "signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})"
    assert ended("signal.raise_signal(signal.SIGINT)", blocked)[0] == 130


def test_what_is_open_is_closed_at_the_first_signal_and_not_at_the_second() -> None:
    closing = "try: signal.raise_signal(signal.SIGINT)\n    finally: print('closed', flush=True)"
    assert ended(closing) == (130, "said\nclosed\ninterrupted; the same command goes on\n")
    both = closing.replace("print(", "signal.raise_signal(signal.SIGINT); print(")
    assert ended(both) == (130, "said\n")


def test_an_interruption_where_python_would_swallow_it_ends_the_command() -> None:
    freed = "class Freed:\n        def __del__(self): signal.raise_signal(signal.SIGINT)\n    Freed()"
    assert ended(freed) == (130, "said\ninterrupted; the same command goes on\n")


def test_what_argparse_refuses_keeps_its_code() -> None:
    assert ended("import argparse; argparse.ArgumentParser(prog='it').parse_args(['--none'])")[0] == 2


def test_a_signal_just_when_signals_begin_to_be_heeded_is_heeded(monkeypatch: pytest.MonkeyPatch) -> None:
    set_handler = signal.signal

    def set_and_send(number: int, handler: Any) -> Any:
        before = set_handler(number, handler)
        if handler is not refuse:
            signal.raise_signal(number)
        return before

    def refuse(number: int, frame: FrameType | None) -> None:
        raise AssertionError("not heeded")

    kept = {number: set_handler(number, refuse) for number in (signal.SIGINT, signal.SIGTERM)}
    monkeypatch.setattr(signal, "signal", set_and_send)
    interruption = Interruption()
    try:
        with interruption.heeded():
            assert interruption.asked
    finally:
        monkeypatch.undo()
        for number, handler in kept.items():
            signal.signal(number, handler)


@pytest.mark.parametrize(
    "script", ["experiments/run.py", "experiments/study.py", "experiments/benchmark.py", "analysis/spectra.py"]
)
def test_ctrl_c_before_a_command_has_imported_anything_ends_it_quietly(script: str) -> None:
    code = f"""
import argparse, runpy, signal, sys
class Interrupting:
    def find_spec(self, name, path=None, target=None):
        if name == "argparse":
            signal.raise_signal(signal.SIGINT)
del sys.modules["argparse"]
sys.meta_path.insert(0, Interrupting())
runpy.run_path({str(ROOT / script)!r}, run_name="__main__")
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout + done.stderr) == (130, "")


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
