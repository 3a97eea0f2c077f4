"""The W&B logger: what it holds can be read back, and nothing W&B does can hurt or delay a run."""

import math
import os
import pty
import select
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from project_paths import ROOT
from wandb_reading import OfflineRun, read_offline_run

from experiments.record import wandb_logger, wandb_mode
from experiments.record.wandb_logger import WandbLogger
from experiments.record.wandb_mode import is_silent, overrules, remember_silence, wanted_mode

KEY = "0123456789abcdef" * 2 + "01234567"
# The logger sets these for its whole process; the tests set them first, so that they end with each test.
QUIETED = ("WANDB_SILENT", "WANDB_ERROR_REPORTING")
CONFIG = {
    "variant": {"name": "lora", "rank": 8, "targets": ["*.query", "*.value"]},
    "rate": 3e-4,
    "note": None,
}


@pytest.fixture(autouse=True)
def no_account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A user without account, settings or proxy, and a wandb that has not read any environment yet."""
    for variable in [*os.environ]:
        if (
            variable.startswith("WANDB_")
            or variable.lower().endswith("_proxy")
            or variable in ("NETRC", "XDG_CACHE_HOME")
        ):
            monkeypatch.delenv(variable)
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    for variable, value in zip(QUIETED, ("true", "false"), strict=True):
        monkeypatch.setenv(variable, value)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(wandb_mode, "_silent_since", {})
    yield
    if "wandb" in sys.modules and sys.modules["wandb"] is not None:
        import wandb

        wandb.teardown()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder of a run, with an adapter in it."""
    folder = tmp_path / "runs" / "lora-r8"
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text('{"r": 8}')
    (folder / "adapter_model.safetensors").write_bytes(b"weights")
    return folder


def start(folder: Path, *, mode: str = "offline") -> WandbLogger:
    return WandbLogger(
        mode=mode,
        project="studies",
        group="rank-sweep",
        name=folder.name,
        config=CONFIG,
        folder=folder,
        job_type="train",
        tags=["lora", "r8"],
    )


def finish(logger: WandbLogger, **changed: Any) -> None:
    results: dict[str, Any] = {"summary": {}, "spectra": dict, "ranks": {}, "files": [], "failed": False}
    logger.finish(**{**results, **changed})


def record_one_row(logger: WandbLogger, folder: Path) -> OfflineRun:
    logger.log(0, {"train/loss": 1.0})
    finish(logger)
    return read_offline_run(folder)


PYTHONPATH = os.pathsep.join(map(str, (ROOT, ROOT / "tests", Path(__file__).parent)))  # of other processes


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(QUIETED)}
    environment = {**inherited, "PYTHONPATH": PYTHONPATH, **environment}
    command = [sys.executable, "-c", textwrap.dedent(code)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60, check=False)


class Host:
    """A local W&B host that answers the first `answers` requests with 404 and none of the later ones."""

    def __init__(self, *, answers: int) -> None:
        self.connections: list[socket.socket] = []
        self._answers = answers
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.connections.append(connection)
            if len(self.connections) <= self._answers:
                connection.recv(4096)
                connection.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")

    def close(self) -> None:
        self._listener.close()
        for connection in self.connections:
            connection.close()


@pytest.fixture
def host(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Host]]:
    """Starts a `Host` that wandb takes for its own, with a key for it."""

    def start_host(*, answers: int) -> Host:
        host = Host(answers=answers)
        request.addfinalizer(host.close)
        monkeypatch.setenv("WANDB_BASE_URL", host.url)
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        return host

    return start_host


# What is recorded


def test_everything_given_until_the_end_is_read_back_and_the_terminal_stays_clean(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    logger = start(folder)
    rows = [{"train/loss": 1 / (step + 1), "effective_scale/block.0.query": 2.0} for step in range(20)]
    for step, row in enumerate(rows):
        logger.log(step, row)
    finish(
        logger,
        summary={"score": 0.75, "steps": 20, "variant": "lora"},
        spectra=lambda: {"block.0.query": [2.5, 1], "block.1.query": [0.5]},
        ranks={"block.0.query": 2, "block.1.query": 1},
        files=[folder / "adapter_config.json", folder / "adapter_model.safetensors"],
    )
    logger.log(20, {"train/loss": 0.0})
    finish(logger, summary={"score": 0.0})

    run = read_offline_run(folder)
    assert (logger.mode, logger.warning) == ("offline", None)
    assert (run.project, run.group, run.name, run.job_type) == ("studies", "rank-sweep", "lora-r8", "train")
    assert run.tags == ["lora", "r8"]
    assert run.config == CONFIG
    assert run.history == [{**row, "step": step} for step, row in enumerate(rows)]
    assert run.x_axes == {"*": "step"}
    assert run.summary == {**rows[-1], "step": 19, "score": 0.75, "steps": 20, "variant": "lora"}
    assert run.tables["spectra"].columns == ["matrix", "index", "sigma"]
    assert run.tables["spectra"].rows == [
        ["block.0.query", 0, 2.5],
        ["block.0.query", 1, 1.0],
        ["block.1.query", 0, 0.5],
    ]
    assert run.tables["ranks"].columns == ["layer", "rank"]
    assert run.tables["ranks"].rows == [["block.0.query", 2], ["block.1.query", 1]]
    assert run.artifacts["adapter-lora-r8"].type == "adapter"
    assert set(run.artifacts["adapter-lora-r8"].files) == {"adapter_config.json", "adapter_model.safetensors"}
    assert run.exit_code == 0
    assert capfd.readouterr() == ("", "")


def test_all_that_waits_for_upload_lies_in_the_folder_of_the_run(folder: Path, tmp_path: Path) -> None:
    logger = start(folder)
    finish(logger, spectra=lambda: {"block.0": [1.0]}, files=[folder / "adapter_config.json"])

    run = read_offline_run(folder)
    waiting = [file for artifact in run.artifacts.values() for file in artifact.files.values()]
    assert len(waiting) == 2
    assert folder / "adapter_config.json" in waiting
    assert all(file.is_relative_to(folder) and file.exists() for file in waiting)
    assert logger.folder is not None
    assert logger.folder.parent == folder / "wandb"
    # wandb's service keeps a log of its own, one a process.
    outside = [p for p in tmp_path.rglob("*") if p.is_file() and not p.is_relative_to(folder)]
    assert [p for p in outside if not p.name.startswith("core-debug")] == []
    assert not [p for p in (folder / "wandb").iterdir() if p.is_symlink()]


def test_rows_keep_their_step_when_steps_repeat_or_go_back_and_nan_is_kept(folder: Path) -> None:
    logger = start(folder)
    for step, key in ((5, "train/loss"), (5, "validation/score"), (3, "test/score")):
        logger.log(step, {key: float("nan") if step == 3 else 1.0})
    finish(logger)

    rows = read_offline_run(folder).history
    assert rows[:2] == [{"step": 5, "train/loss": 1.0}, {"step": 5, "validation/score": 1.0}]
    assert rows[2]["step"] == 3
    assert math.isnan(rows[2]["test/score"])


def test_runs_open_at_once_are_kept_apart_even_if_the_environment_names_one_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_RUN_ID", "the-only-one")
    folders = [tmp_path / f"trial{index}" for index in range(3)]
    loggers = [start(folder) for folder in folders]
    for step in range(3):
        for index, logger in enumerate(loggers):
            logger.log(step, {"train/loss": 10.0 * index + step})
    for index, logger in enumerate(loggers):
        finish(logger, failed=index == 1)

    runs = [read_offline_run(folder) for folder in folders]
    losses = [[row["train/loss"] for row in run.history] for run in runs]
    assert losses == [[0, 1, 2], [10, 11, 12], [20, 21, 22]]
    assert [run.exit_code for run in runs] == [0, 1, 0]
    assert len({logger.folder.name.split("-")[-1] for logger in loggers if logger.folder}) == 3


def test_more_sigmas_than_a_table_holds_leave_the_largest_of_every_matrix(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wandb_logger, "TABLE_ROWS", 5)
    logger = start(folder)
    finish(logger, spectra=lambda: {"a": [3.0, 2.0, 1.0], "b": [6.0, 5.0, 4.0]})

    assert read_offline_run(folder).tables["spectra"].rows == [
        ["a", 0, 3.0],
        ["a", 1, 2.0],
        ["b", 0, 6.0],
        ["b", 1, 5.0],
    ]


@pytest.mark.slow
def test_a_killed_run_keeps_every_row_logged_before_the_last_two_seconds(folder: Path) -> None:
    killed = run_python(f"""
        import os, signal, time
        from pathlib import Path
        from test_wandb_logger import start
        logger = start(Path({str(folder)!r}))
        for step in range(50):
            logger.log(step, {{"train/loss": float(step)}})
        time.sleep(3)
        os.kill(os.getpid(), signal.SIGKILL)
    """)

    run = read_offline_run(folder)
    assert killed.returncode == -signal.SIGKILL
    assert [(row["step"], row["train/loss"]) for row in run.history] == [(step, step) for step in range(50)]
    assert run.exit_code is None


def test_a_run_ended_by_ctrl_c_is_closed_as_failed(folder: Path) -> None:
    ended = run_python(f"""
        from pathlib import Path
        from test_wandb_logger import start
        logger = start(Path({str(folder)!r}))
        logger.log(0, {{"train/loss": 1.0}})
        raise KeyboardInterrupt
    """)

    run = read_offline_run(folder)
    assert "wandb" not in ended.stderr.replace("wandb_logger", "")
    assert len(run.history) == 1
    assert run.exit_code not in (0, None)


# Where it is recorded


def test_importing_the_module_does_not_import_wandb() -> None:
    code = "import sys, experiments.record.wandb_logger; print('wandb' in sys.modules, 'torch' in sys.modules)"
    assert run_python(code).stdout.split() == ["False", "False"]


@pytest.mark.parametrize("asked", ["disabled", "auto"])
def test_disabled_needs_no_wandb_and_writes_nothing(asked: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.setitem(sys.modules, "wandb", None)
    before = sorted(folder.rglob("*"))
    logger = start(folder, mode=asked)
    logger.log(0, {"train/loss": 1.0})
    spectra = Mock(return_value={})
    finish(logger, spectra=spectra, files=[folder / "adapter_config.json"])

    assert (logger.mode, logger.warning, logger.folder) == ("disabled", None, None)
    assert not spectra.called  # they are a decomposition of every ΔW
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize(
    ("asked", "exported", "wanted"),
    [
        ("auto", "", "auto"),
        ("auto", "online", "online"),
        ("auto", "run", "online"),
        ("auto", "shared", "online"),
        ("auto", "offline", "offline"),
        ("auto", "dryrun", "offline"),
        ("auto", "disabled", "disabled"),
        ("online", "offline", "online"),
        ("offline", "online", "offline"),
        ("disabled", "nonsense", "disabled"),
    ],
)
def test_wandb_mode_decides_only_where_the_caller_left_it_open(
    asked: str, exported: str, wanted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", exported)
    assert wanted_mode(asked) == wanted


@pytest.mark.parametrize(
    ("asked", "disabled", "mode", "wanted"),
    [
        ("auto", "true", "online", "disabled"),
        ("auto", "1", "", "disabled"),
        ("auto", "False", "offline", "offline"),
        ("auto", "", "", "auto"),
        ("offline", "true", "", "offline"),
    ],
)
def test_wandb_disabled_decides_only_where_the_caller_left_it_open(
    asked: str, disabled: str, mode: str, wanted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_DISABLED", disabled)
    monkeypatch.setenv("WANDB_MODE", mode)
    assert wanted_mode(asked) == wanted


@pytest.mark.parametrize(
    ("asked", "disabled", "told"),
    [("offline", "true", True), ("offline", "", False), ("auto", "true", False), ("disabled", "true", False)],
)
def test_a_request_that_beats_wandb_disabled_is_told_of(
    asked: str, disabled: str, told: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_DISABLED", disabled)
    assert (overrules(asked) is not None) == told


def test_an_unknown_value_of_wandb_disabled_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_DISABLED", "perhaps")
    with pytest.raises(ValueError, match="WANDB_DISABLED='perhaps'; unset it or choose one of 1, true"):
        wanted_mode("auto")


def test_an_unknown_mode_is_an_error_that_names_the_known_ones(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="'of-line' does not exist; choose one of auto, online, offline, disab"):
        start(folder, mode="of-line")
    monkeypatch.setenv("WANDB_MODE", "of-line")
    with pytest.raises(ValueError, match="WANDB_MODE='of-line'; unset it or choose one of online"):
        start(folder, mode="auto")


def test_an_explicit_offline_records_although_the_environment_says_disabled(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert len(record_one_row(start(folder, mode="offline"), folder).history) == 1


def netrc(machine: str) -> Callable[[pytest.MonkeyPatch], None]:
    text = f"machine {machine} login user password {KEY}\n"
    return lambda patch: Path("~/.netrc").expanduser().write_text(text) and None


def token_file(patch: pytest.MonkeyPatch) -> None:
    Path("token").write_text("a.b.c")
    patch.setenv("WANDB_IDENTITY_TOKEN_FILE", str(Path("token").resolve()))


def settings_file(text: str) -> Callable[[pytest.MonkeyPatch], None]:
    def write(patch: pytest.MonkeyPatch) -> None:
        file = Path("~/.config/wandb/settings").expanduser()
        file.parent.mkdir(parents=True)
        file.write_text(f"[default]\n{text}\n")

    return write


@pytest.mark.parametrize(
    ("configure", "mode"),
    [
        pytest.param(lambda patch: None, "offline", id="no key"),
        pytest.param(lambda patch: patch.setenv("WANDB_API_KEY", KEY), "online", id="WANDB_API_KEY"),
        pytest.param(token_file, "online", id="token file"),
        pytest.param(netrc("wandb.invalid"), "online", id="netrc"),
        pytest.param(netrc("elsewhere.invalid"), "offline", id="netrc of another host"),
        pytest.param(settings_file(f"api_key = {KEY}"), "online", id="settings file"),
        pytest.param(settings_file(f"api_key = {KEY}\nmode = offline"), "offline", id="wandb offline"),
        pytest.param(settings_file(f"api_key = {KEY}\nmode = disabled"), "disabled", id="wandb disabled"),
    ],
)
def test_auto_is_online_exactly_where_wandb_has_a_key_for_its_host(
    configure: Callable[[pytest.MonkeyPatch], None],
    mode: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.invalid")
    monkeypatch.setattr(wandb_logger, "START_SECONDS", 0.2)
    configure(monkeypatch)
    logger = start(folder, mode="auto")
    finish(logger)
    # There is no such host: who tried it was told that it did not answer.
    tried = logger.warning is not None and "https://wandb.invalid gave no answer" in logger.warning
    assert ("online" if tried else logger.mode) == mode
    assert tried or logger.warning is None
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("asked", "key", "reason"),
    [("online", "", "No API key configured. Use `wandb login`"), ("auto", "too-short", "WANDB_API_KEY invalid")],
)
def test_without_a_usable_key_the_run_is_recorded_offline_with_one_warning_and_at_once(
    asked: str, key: str, reason: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", key)
    began = time.monotonic()
    logger = start(folder, mode=asked)
    assert time.monotonic() - began < 8
    assert logger.mode == "offline"
    assert logger.warning is not None
    assert logger.warning.startswith("W&B logs offline: there is no usable key for https://")
    assert reason in logger.warning
    assert len(logger.warning.splitlines()) == 1
    assert len(record_one_row(logger, folder).history) == 1


@pytest.mark.parametrize("environment", [{}, {"WANDB_SILENT": "false"}], ids=["plain", "not silent"])
def test_nobody_at_a_terminal_is_asked_for_a_key(folder: Path, environment: dict[str, str]) -> None:
    said, seconds = at_a_terminal(
        f"""
        import os, time
        from pathlib import Path
        from test_wandb_logger import finish, start
        assert os.isatty(0) and os.isatty(2)
        logger = start(Path({str(folder)!r}), mode="auto")
        finish(logger)
        print(logger.mode, logger.warning)
        """,
        **environment,
    )
    assert said.split() == ["offline", "None"]
    assert seconds < 15


def at_a_terminal(code: str, **environment: str) -> tuple[str, float]:
    """What Python says to the code at a terminal where nobody types, and how long it took, 30 s at most."""
    ours, theirs = pty.openpty()
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(QUIETED)}
    paths = {"PYTHONPATH": PYTHONPATH, "TERM": "xterm"}
    command = [sys.executable, "-c", textwrap.dedent(code)]
    began = time.monotonic()
    with subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, env={**inherited, **paths, **environment}
    ) as process:
        os.close(theirs)
        said = b""
        while time.monotonic() - began < 30:
            if select.select([ours], [], [], 0.1)[0]:
                try:
                    said += os.read(ours, 4096)
                except OSError:  # Linux says so that the other end is closed
                    break
        process.kill()
    os.close(ours)
    return said.decode(), time.monotonic() - began


# Without a network


STARTED_IN_ANOTHER_PROCESS = """
    import time
    from pathlib import Path
    from experiments.record import wandb_logger
    from test_wandb_logger import finish, start
    wandb_logger.START_SECONDS = {start_seconds}
    began = time.monotonic()
    logger = start(Path({folder!r}), mode={mode!r})
    print(time.monotonic() - began)
    logger.log(0, {{"train/loss": 1.0}})
    finish(logger)
    print(time.monotonic())
    print(logger.mode, logger.warning)
"""


def started_in_another_process(
    folder: Path, *, start_seconds: float = wandb_logger.START_SECONDS, mode: str = "auto"
) -> tuple[float, float, str]:
    """The seconds that a start took, those that the process then took to end, and what the user was told."""
    done = run_python(STARTED_IN_ANOTHER_PROCESS.format(folder=str(folder), start_seconds=start_seconds, mode=mode))
    ended = time.monotonic()
    assert done.stderr == ""
    start_took, finished_at, said = done.stdout.splitlines()
    run = read_offline_run(folder)
    assert (run.history, run.exit_code) == ([{"step": 0, "train/loss": 1.0}], 0)
    return float(start_took), ended - float(finished_at), said


@pytest.mark.slow
def test_without_a_network_a_run_with_a_key_starts_offline_within_20_s_and_the_next_process_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.invalid")
    start_took, end_took, said = started_in_another_process(tmp_path / "first")
    assert 9 < start_took < 20
    assert end_took < 5
    assert said.startswith("offline W&B logs offline: https://wandb.invalid gave no answer in 10 s (CommError:")
    start_took, end_took, said = started_in_another_process(tmp_path / "second")
    assert start_took < 5
    assert end_took < 5
    assert said.startswith("offline W&B logs offline: https://wandb.invalid gave no answer when last asked, less th")


def test_a_host_that_never_answers_is_asked_by_one_process_of_a_study_and_delays_the_end_of_none(
    tmp_path: Path, host: Callable[..., Host], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings_file("save_code = false")(monkeypatch)
    silent = host(answers=0)
    for name, asked_before in (("first", False), ("second", True)):
        _, end_took, said = started_in_another_process(tmp_path / name, start_seconds=1.0, mode="online")
        assert end_took < 10
        assert ("gave no answer when last asked" in said) == asked_before
        assert said.startswith(f"offline W&B logs offline: {silent.url} gave no answer")
        if not asked_before:
            connections = len(silent.connections)
            assert connections >= 1
    assert len(silent.connections) == connections


def test_a_closed_port_is_a_host_that_gives_no_answer(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{nobody.getsockname()[1]}")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setattr(wandb_logger, "START_SECONDS", 1.0)
    began = time.monotonic()
    logger = start(folder, mode="auto")
    assert time.monotonic() - began < 8
    assert logger.mode == "offline"
    assert logger.warning is not None
    assert "gave no answer in 1 s" in logger.warning
    assert len(logger.warning.splitlines()) == 1
    assert len(record_one_row(logger, folder).history) == 1


def test_a_host_that_refuses_at_once_is_asked_again_by_the_next_run(tmp_path: Path, host: Callable[..., Host]) -> None:
    refusing = host(answers=1000)
    for name in ("first", "second"):
        before = len(refusing.connections)
        logger = start(tmp_path / name, mode="auto")
        assert logger.mode == "offline"
        assert logger.warning is not None
        assert "started no run, is the key right?" in logger.warning
        assert len(refusing.connections) > before
        assert len(record_one_row(logger, tmp_path / name).history) == 1


def test_a_silent_host_is_asked_again_after_ten_minutes_and_other_hosts_always(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    host = "https://wandb.invalid/with/a/path"
    remember_silence(host)
    wandb_mode._silent_since.clear()  # as in another process
    assert is_silent(host)
    assert not is_silent("https://wandb.invalid")
    now = time.time()
    for later, silent in ((599, True), (601, False), (-601, False)):
        monkeypatch.setattr(wandb_mode.time, "time", lambda at=now + later: at)
        assert is_silent(host) == silent


@pytest.mark.parametrize("obstacle", ["a file", "no right"])
def test_where_the_cache_cannot_be_written_one_process_still_waits_once(
    obstacle: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    if obstacle == "a file":
        cache.write_text("not a folder")
    else:
        # root may write anywhere, so the refusal is made up
        monkeypatch.setattr(Path, "mkdir", Mock(side_effect=PermissionError("read-only")))
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    remember_silence("https://wandb.invalid")
    assert is_silent("https://wandb.invalid")
    assert not is_silent("https://elsewhere.invalid")


# When wandb breaks


def test_a_wandb_that_raises_while_logging_ends_the_logger_but_not_the_run(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import wandb

    logger = start(folder)
    logger.log(0, {"train/loss": 1.0})
    calls = []

    def broken(self: Any, *args: Any, **kwargs: Any) -> None:
        calls.append(args)
        raise RuntimeError("the service is gone")

    monkeypatch.setattr(wandb.Run, "log", broken)
    for step in range(1, 4):
        logger.log(step, {"train/loss": 1.0})
    finish(logger, summary={"score": 1.0}, ranks={"block.0": 8})

    assert len(calls) == 1
    assert logger.mode == "failed"
    assert logger.warning is not None
    assert "could not log a row (RuntimeError: the service is gone)" in logger.warning
    assert len(logger.warning.splitlines()) == 1
    kept = (folder / "wandb_error.txt").read_text()
    assert "Traceback" in kept
    assert "in broken" in kept
    run = read_offline_run(folder)
    assert run.history == [{"step": 0, "train/loss": 1.0}]
    assert run.exit_code == 1


def test_spectra_that_cannot_be_taken_are_told_and_the_run_is_still_closed(folder: Path) -> None:
    logger = start(folder)
    finish(logger, summary={"score": 1.0}, spectra=Mock(side_effect=ValueError("entry (0, 0) is nan")))
    assert logger.mode == "failed"
    assert logger.warning is not None
    assert "could not write the results (ValueError: entry (0, 0) is nan)" in logger.warning
    run = read_offline_run(folder)
    assert (run.summary, run.exit_code) == ({"score": 1.0}, 1)


def test_results_that_wandb_refuses_are_told_and_the_run_is_still_closed(folder: Path) -> None:
    logger = start(folder)
    finish(logger, summary={"score": 1.0}, files=[folder / "missing.safetensors"])
    finish(logger, summary={"score": 2.0})

    assert logger.mode == "failed"
    assert logger.warning is not None
    assert "could not write the results (ValueError: Path is not a file" in logger.warning
    run = read_offline_run(folder)
    assert run.summary == {"score": 1.0}
    assert run.exit_code == 1


def test_a_folder_that_wandb_cannot_write_to_is_told_and_nothing_is_written_elsewhere(folder: Path) -> None:
    (folder / "wandb").write_text("not a folder")
    logger = start(folder)
    logger.log(0, {"train/loss": 1.0})
    finish(logger)

    assert (logger.mode, logger.folder) == ("failed", None)
    assert logger.warning is not None
    assert logger.warning.startswith("W&B could not start (FileExistsError")
    assert "Traceback" in (folder / "wandb_error.txt").read_text()


def test_an_error_that_cannot_even_be_written_down_is_told(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("not a folder")
    logger = start(tmp_path / "runs" / "lora-r8")
    assert logger.mode == "failed"
    assert logger.warning is not None
    assert "traceback could not be kept" in logger.warning


def test_an_error_before_the_folder_of_the_run_exists_is_written_down_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert start(tmp_path / "new", mode="auto").mode == "failed"
    assert "import of wandb halted" in (tmp_path / "new" / "wandb_error.txt").read_text()
