"""Fixtures that several test modules share."""

import shutil
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("shared-machine", deadline=None)  # a busy core is no defect
settings.load_profile("shared-machine")


@pytest.fixture(scope="session")
def _empty_tracking(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from cdrl.tracking import server

    root = tmp_path_factory.mktemp("tracking")
    server.connect(server.default_uri(root))
    return root / "mlflow.db"


@pytest.fixture
def run_root(tmp_path: Path, _empty_tracking: Path) -> Path:
    """A folder of runs with an empty tracking database: MLflow takes seconds to make one, a copy takes none."""
    root = tmp_path / "runs"
    root.mkdir()
    shutil.copy(_empty_tracking, root)
    return root


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Downloads lead to a port where nobody listens."""
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    # urlopen keeps the proxies of its first call for good; without this, later tests would go there too
    monkeypatch.setattr("urllib.request._opener", None)
