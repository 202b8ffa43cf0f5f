"""MLflow's own scoring server as a child process, for as long as this one lives."""

import shlex
import signal
import socket
import subprocess
import sys
from pathlib import Path
from types import FrameType

from mlflow.pyfunc import scoring_server

from cdrl.errors import ConfigError, RegistryError

__all__ = ["serving"]

SAFE = {
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "PYTHONDONTWRITEBYTECODE": "1",  # a version's folder stays as it was checked
}


def serving(version: Path, *, host: str, port: int, num_workers: int = 1) -> int:
    """Serve a version's folder until SIGINT or SIGTERM; the server's exit code, 0 where it was asked to end.

    Raises:
        RegistryError: it is a bare package, without what MLflow needs.
        ConfigError: something listens at this address already, or it is none of this machine.
    """
    if not (version / "MLmodel").is_file():
        raise RegistryError("a bare package cannot be served; name the version, or the whole folder of one")
    _check_free(host, port)
    command, environment = scoring_server.get_cmd(str(version), port=port, host=host, nworkers=num_workers)
    child = subprocess.Popen([sys.executable, "-m", *shlex.split(command)], env=environment | SAFE)
    asked = False

    def end(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        asked = True
        child.terminate()

    before = {sign: signal.signal(sign, end) for sign in (signal.SIGINT, signal.SIGTERM)}
    try:
        code = child.wait()
    finally:
        child.kill()
        for sign, handler in before.items():
            signal.signal(sign, handler)
    return 0 if asked else code


def _check_free(host: str, port: int) -> None:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise ConfigError(f"--host {host} --port {port}: cannot listen there: {error.strerror or error}") from None
