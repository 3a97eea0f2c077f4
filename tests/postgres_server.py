"""A PostgreSQL server of the tests' own, in a temporary folder and on a free port; it asks for a password."""

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import pytest
from sqlalchemy import URL

from experiments.studies.queue.storage import Address, read_address

USER = "lora"
PASSWORD = "p@ss:/%#{word}"
DATABASES = count()


@dataclass(frozen=True)
class Server:
    folder: Path
    programs: Path
    port: int

    def run(self, program: str, *arguments: str) -> None:
        """As user postgres where this process is root: the server refuses to run as root."""
        user = "postgres" if os.geteuid() == 0 else None
        command = [str(self.programs / program), "-D", str(self.folder / "data"), *arguments]
        subprocess.run(command, user=user, group=user, extra_groups=[] if user else None, check=True, cwd=self.folder)

    def start(self) -> None:
        settings = f"-p {self.port} -k {self.folder} -c listen_addresses=127.0.0.1 -c fsync=off -c max_connections=300"
        self.run("pg_ctl", "--silent", "--wait", "-l", str(self.folder / "log"), "-o", settings, "start")

    def stop(self) -> None:
        self.run("pg_ctl", "--silent", "--wait", "-m", "immediate", "stop")

    def execute(self, *statements: str, database: str = "postgres") -> None:
        import psycopg

        with psycopg.connect(
            host="127.0.0.1", port=self.port, user=USER, password=PASSWORD, dbname=database, autocommit=True
        ) as connection:
            for statement in statements:
                connection.execute(statement.encode())


def programs() -> Path | None:
    """The folder of the newest server that is installed."""
    folders: Sequence[Path] = sorted(
        Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3])
    )
    found = str(folders[-1]) if folders else shutil.which("initdb")
    return None if found is None else Path(found).parent


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Server]:
    pytest.importorskip("psycopg", reason="psycopg is not installed: pip install -e '.[postgres]'")
    found = programs()
    if found is None:
        pytest.skip("no PostgreSQL server is installed (no initdb)")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory(prefix="pg-", dir="/tmp") as name:
        server = Server(Path(name), found, port)
        (server.folder / "password").write_text(PASSWORD)
        if os.geteuid() == 0:
            for path in (server.folder, server.folder / "password"):
                shutil.chown(path, "postgres")
        server.run(
            "initdb",
            f"--username={USER}",
            "--auth=scram-sha-256",
            f"--pwfile={server.folder / 'password'}",
            "--no-sync",
            "--encoding=UTF8",
            "--locale=C",
        )
        server.start()
        yield server
        server.stop()


@contextmanager
def database(server: Server) -> Iterator[Address]:
    """A database of its own, empty, whose password is in the URL."""
    name = f"studies_{next(DATABASES)}"
    server.execute(f"CREATE DATABASE {name}")
    url = URL.create("postgresql", USER, PASSWORD, "127.0.0.1", server.port, name)
    yield read_address(url.render_as_string(hide_password=False), told_by="the test")
    server.execute(f"DROP DATABASE {name} WITH (FORCE)")
