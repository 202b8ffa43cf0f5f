"""A Kubeflow endpoint. Its address and token come from the environment or a file, never from an argument."""

import json
import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from cdrl.errors import ConfigError, JobFailed

__all__ = ["Endpoint"]

URL, TOKEN, TOKEN_FILE = "CDRL_KUBEFLOW_URL", "CDRL_KUBEFLOW_TOKEN", "CDRL_KUBEFLOW_TOKEN_FILE"
TIMEOUT_S = 20.0


class Endpoint:
    """Kubeflow Pipelines behind `CDRL_KUBEFLOW_URL`, with `CDRL_KUBEFLOW_TOKEN` or the content of ..._TOKEN_FILE.

    Raises:
        ConfigError: the address is missing or none, it does not answer as Kubeflow, or the token is refused.
    """

    def __init__(self) -> None:
        self.url = os.environ.get(URL, "").rstrip("/")
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username:
            raise ConfigError(f"{URL}: expected http(s)://HOST[:PORT][/PATH] of Kubeflow Pipelines, without a password")
        self._token = _token()
        self._check()

    def submit(
        self, package: Path, parameters: dict[str, Any], name: str, experiment: str, namespace: str | None
    ) -> str:
        """Start a run of a compiled pipeline; the address of its page.

        Raises:
            JobFailed: Kubeflow refused it.
        """
        with self._client(namespace) as client:
            made = client.create_run_from_pipeline_package(
                str(package), parameters, run_name=name, experiment_name=experiment, namespace=namespace
            )
        return f"{self.url}/#/runs/details/{made.run_id}"

    def spec_of(self, run: str) -> list[dict[str, Any]]:
        """The pipeline that a run on the endpoint runs, and what it asks of Kubernetes.

        Raises:
            JobFailed: there is no such run.
        """
        with self._client(None) as client:
            found = client.get_run(run).pipeline_spec
        if not isinstance(found, dict):
            raise JobFailed(f"run {run!r} at {self.url}: Kubeflow tells no pipeline of it")
        if "pipeline_spec" in found:
            return [found["pipeline_spec"], found.get("platform_spec", {})]
        return [found]

    @contextmanager
    def _client(self, namespace: str | None) -> Iterator[Any]:
        """Kubeflow's own client; its errors as one line, its prints left out."""
        from kfp import client
        from kfp_server_api import ApiException

        try:
            with redirect_stdout(StringIO()):
                yield client.Client(host=self.url, existing_token=self._token, namespace=namespace or "kubeflow")
        except ApiException as error:
            why = f"{error.status} {error.reason}: {_told(error.body)}"
            raise JobFailed(f"Kubeflow at {self.url} refused: {why}") from None

    def _check(self) -> None:
        """Ask for its health: who answers otherwise is not Kubeflow, or does not know us."""
        request = urllib.request.Request(f"{self.url}/apis/v2beta1/healthz")
        if self._token:
            request.add_header("Authorization", f"Bearer {self._token}")
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
                told = json.loads(answer.read(65_536))
        except urllib.error.HTTPError as error:
            if error.code in (401, 403):
                which = "refused the token" if self._token else f"asks for a token: set {TOKEN} or {TOKEN_FILE}"
                raise ConfigError(f"Kubeflow at {self.url} {which} ({error.code})") from None
            raise ConfigError(f"{self.url} answered {error.code}; expected the address of Kubeflow Pipelines") from None
        except (OSError, urllib.error.URLError) as error:
            reason = getattr(error, "reason", error)
            raise ConfigError(f"Kubeflow at {self.url} cannot be reached: {reason}; see {URL}") from None
        except ValueError:
            told = None
        if not isinstance(told, dict):
            raise ConfigError(
                f"{self.url} answered with a web page, not as Kubeflow Pipelines: a login in front of it? Set {TOKEN}"
            )


def _token() -> str | None:
    file = os.environ.get(TOKEN_FILE)
    if file is None:
        return os.environ.get(TOKEN) or None
    try:
        return Path(file).read_text().strip() or None
    except (OSError, UnicodeDecodeError):
        raise ConfigError(f"{TOKEN_FILE}: {file} cannot be read") from None


def _told(body: object) -> str:
    """What an answer says, in short."""
    try:
        return str(json.loads(str(body))["message"])[:300]
    except (ValueError, KeyError, TypeError):
        return " ".join(str(body).split())[:300]
