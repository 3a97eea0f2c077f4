"""A forked Python is what a started one is, but for the imports that it does not repeat."""

import signal
import sys
import time
from pathlib import Path

import pytest
from forked_python import PRELOADED, ForkedPython, run_python


def script(folder: Path, code: str) -> Path:
    path = folder / "script.py"
    path.write_text(code)
    return path


def test_all_that_is_slow_to_import_is_there_at_the_start(tmp_path: Path) -> None:
    path = script(tmp_path, "import sys\nprint(*sorted({*sys.argv[1:]} - sys.modules.keys()))")
    done = run_python([sys.executable, path, "torch", *PRELOADED])
    assert (done.returncode, done.stdout, done.stderr) == (0, "\n", "")


def test_folder_environment_streams_and_exit_code_are_its_own(tmp_path: Path) -> None:
    code = "import os, sys\nprint(os.getcwd(), dict(os.environ), 'ΔW')\nprint('error', file=sys.stderr)\nsys.exit(3)"
    done = run_python([sys.executable, script(tmp_path, code)], cwd=tmp_path, env={"A": "b"})
    assert done.stdout == f"{tmp_path} {{'A': 'b'}} ΔW\n"
    assert (done.returncode, done.stderr) == (3, "error\n")


def test_what_is_registered_for_the_end_is_done_and_an_error_is_told(tmp_path: Path) -> None:
    code = "import atexit\natexit.register(print, 'the end')\nraise ValueError('why')"
    done = run_python([sys.executable, script(tmp_path, code)])
    assert (done.returncode, done.stdout) == (1, "the end\n")
    assert done.stderr.endswith("ValueError: why\n")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 42), (signal.SIGKILL, -signal.SIGKILL)])
def test_a_signal_reaches_the_process_that_runs_the_script(tmp_path: Path, number: int, code: int) -> None:
    path = script(
        tmp_path,
        "import os, time\ntry:\n    print(os.getpid(), flush=True)\n    time.sleep(60)\n"
        "except KeyboardInterrupt:\n    raise SystemExit(42)",
    )
    process, printed = ForkedPython([sys.executable, path], stdout=tmp_path / "printed"), tmp_path / "printed"
    while not printed.exists() or not printed.read_text():
        assert process.poll() is None
        time.sleep(0.005)
    assert int(printed.read_text()) == process.pid
    process.send_signal(number)
    assert process.wait(timeout=30) == code


def test_standard_input_is_a_pipe_that_ends_when_it_is_closed(tmp_path: Path) -> None:
    path = script(tmp_path, "import sys\nprint(sys.stdin.buffer.readline(), sys.stdin.buffer.read(), flush=True)")
    process = ForkedPython([sys.executable, path], stdout=tmp_path / "printed")
    process.stdin.write(b"first\nlast")
    process.stdin.close()
    assert process.wait(timeout=30) == 0
    assert (tmp_path / "printed").read_text() == "b'first\\n' b'last'\n"
