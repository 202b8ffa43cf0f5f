"""The compose file: by the specification's rules as far as they can be held without an engine, and by ours."""

import configparser
import copy
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from sqlalchemy import make_url

from tests.manifests import built
from tests.policies import DIGEST, EVERYWHERE, SECRET_NAME, SETTING, TAG

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "infra/compose"
EXAMPLE = FOLDER / ".env.example"
# of the compose specification, those that we use: a misspelt key is ignored by nobody here
TOP = {"name", "services", "volumes"}
SERVICE = {
    *("build", "cap_drop", "command", "depends_on", "deploy", "environment", "healthcheck", "image", "pids_limit"),
    *("ports", "read_only", "restart", "security_opt", "shm_size", "tmpfs", "user", "volumes"),
}
HEALTH = {"test", "interval", "timeout", "retries", "start_period"}
CONDITIONS = {"service_started", "service_healthy", "service_completed_successfully"}
VARIABLE = re.compile(r"\$\{(\w+)(:[-?])?([^}]*)\}")


@pytest.fixture(scope="module")
def whole() -> dict[str, Any]:
    return dict(yaml.safe_load((FOLDER / "compose.yaml").read_text()))


def filled(text: str, values: dict[str, str]) -> str:
    """A text with its variables put in, as compose does it.

    Raises:
        KeyError: a variable that must be there is not, or is empty.
    """

    def value(match: re.Match[str]) -> str:
        name, how, rest = match.groups()
        if how == ":?" and not values.get(name):
            raise KeyError(f"{name}: {rest}")
        return values.get(name) or (rest if how == ":-" else "")

    return VARIABLE.sub(value, text)


def problems(whole: dict[str, Any]) -> Iterator[str]:
    """What is wrong with a compose file, service by service."""
    if unknown := {key for key in whole if not key.startswith("x-")} - TOP:
        yield f"unknown: {sorted(unknown)}"
    for name, service in whole["services"].items():
        for what in (*_shape(name, service, whole), *_doors(service), *_secrets(service), *_privileges(service)):
            yield f"{name}: {what}"


def _shape(name: str, service: dict[str, Any], whole: dict[str, Any]) -> Iterator[str]:
    if unknown := set(service) - SERVICE:
        yield f"unknown: {sorted(unknown)}"
    image = filled(service.get("image", ""), {})
    if not TAG.search(DIGEST.sub("", image)) or image.endswith(":latest"):
        yield f"image {image!r} has no version"
    if not re.fullmatch(r"\$\{\w+_IMAGE:-[^}]+\}", service.get("image", "")):
        yield "no place for a digest"
    for other, how in service.get("depends_on", {}).items():
        needed = whole["services"].get(other)
        condition = how.get("condition")
        if needed is None or condition not in CONDITIONS:
            yield f"depends on {other}, which is not there, or not so"
        elif condition == "service_healthy" and "healthcheck" not in needed:
            yield f"waits for the health of {other}, which has no check"
        elif condition == "service_completed_successfully" and needed.get("restart") != "no":
            yield f"waits for the end of {other}, which starts again"
    for mount in service.get("volumes", []):
        source = mount.split(":")[0]
        is_file = source.startswith(".")
        if not (FOLDER / source).is_file() if is_file else source not in whole["volumes"]:
            yield f"mounts {source}, which is not there"
        if is_file and not mount.endswith(":ro"):
            yield f"may write {source}"
    check = service.get("healthcheck", {})
    if service.get("restart") != "no" and (not {"test", "interval", "timeout"} <= set(check) <= HEALTH):
        yield "no health check"
    if check and check["test"][0] not in ("CMD", "CMD-SHELL"):
        yield "a health check begins with CMD"


def _doors(service: dict[str, Any]) -> Iterator[str]:
    for port in service.get("ports", []):
        if not re.fullmatch(r"127\.0\.0\.1:\d+:\d+", str(port)):
            yield f"port {port} is open to others than this machine"
    command = service.get("command", [])
    has_token = service.get("environment", {}).get("RAY_AUTH_MODE") == "token" and "ray" in command
    if any(EVERYWHERE.search(part) for part in command) and not (has_token or "--app-name=basic-auth" in command):
        if not any(SECRET_NAME.search(key) for key in service.get("environment", {})):
            yield "listens everywhere without logins"
    if "ray" in command and not has_token:
        yield "Ray without a token"
    if "mlflow" in command and "--app-name=basic-auth" not in command:
        yield "MLflow without logins"
    if service.get("environment", {}).get("POSTGRES_HOST_AUTH_METHOD") == "trust":
        yield "PostgreSQL without a password"


def _secrets(service: dict[str, Any]) -> Iterator[str]:
    for key, value in service.get("environment", {}).items():
        is_secret = SECRET_NAME.search(key) and not SETTING.search(key)
        if is_secret and not key.endswith("_USERNAME") and not re.fullmatch(r"\$\{\w+:\?[^}]+\}", str(value)):
            yield f"{key} in clear, or not asked for"
    if any(re.search(r"://[^/@\s]+:[^/@\s]+@", part) for part in service.get("command", [])):
        yield "a password in its command"


def _privileges(service: dict[str, Any]) -> Iterator[str]:
    if not re.fullmatch(r"[1-9]\d*:[1-9]\d*", str(service.get("user", ""))):
        yield "may run as root"
    if service.get("cap_drop") != ["ALL"] or service.get("security_opt") != ["no-new-privileges:true"]:
        yield "keeps privileges"
    if service.get("read_only") is not True:
        yield "can write to its own image"
    if not {"cpus", "memory"} <= set(service.get("deploy", {}).get("resources", {}).get("limits", {})):
        yield "no limits"


def test_the_file_keeps_the_rules(whole: dict[str, Any]) -> None:
    assert list(problems(whole)) == []
    assert set(whole["services"]) == {"postgres", "bucket", "s3", "mlflow", "ray-head", "ray-worker"}


def _environment(name: str, key: str, value: str) -> Callable[[Any], object]:
    return lambda services: services[name]["environment"].update({key: value})


PLANTED: list[tuple[str, Callable[[Any], object]]] = [
    ("s3: unknown: ['port']", lambda s: s["s3"].update(port=["x"])),
    ("s3: image 'versity/versitygw' has no version", lambda s: s["s3"].update(image="${S3_IMAGE:-versity/versitygw}")),
    ("s3: no place for a digest", lambda s: s["s3"].update(image="versity/versitygw:v1.8.0")),
    ("s3: depends on nobody, which is", lambda s: s["s3"].update(depends_on={"nobody": {}})),
    ("mlflow: waits for the health of s3", lambda s: s["s3"].pop("healthcheck")),
    ("s3: waits for the end of bucket", lambda s: s["bucket"].update(restart="always")),
    ("s3: mounts elsewhere, which is not there", lambda s: s["s3"].update(volumes=["elsewhere:/data"])),
    ("mlflow: may write ../", lambda s: s["mlflow"].update(volumes=[s["mlflow"]["volumes"][0].removesuffix(":ro")])),
    ("ray-worker: no health check", lambda s: s["ray-worker"].pop("healthcheck")),
    ("s3: port 7070:7070 is open", lambda s: s["s3"].update(ports=["7070:7070"])),
    ("s3: port 0.0.0.0:7070:7070 is open", lambda s: s["s3"].update(ports=["0.0.0.0:7070:7070"])),
    ("mlflow: MLflow without logins", lambda s: s["mlflow"]["command"].remove("--app-name=basic-auth")),
    ("ray-head: Ray without a token", lambda s: s["ray-head"].update(environment={})),
    ("postgres: PostgreSQL without", _environment("postgres", "POSTGRES_HOST_AUTH_METHOD", "trust")),
    ("postgres: POSTGRES_PASSWORD in clear", _environment("postgres", "POSTGRES_PASSWORD", "hunter2")),
    ("postgres: POSTGRES_PASSWORD in clear", _environment("postgres", "POSTGRES_PASSWORD", "${X:-hunter2}")),
    ("mlflow: a password in", lambda s: s["mlflow"]["command"].append("--x=postgresql://mlflow:hunter2@postgres/x")),
    ("s3: may run as root", lambda s: s["s3"].pop("user")),
    ("s3: keeps privileges", lambda s: s["s3"].pop("cap_drop")),
    ("s3: can write", lambda s: s["s3"].update(read_only=False)),
    ("s3: no limits", lambda s: s["s3"].pop("deploy")),
]


@pytest.mark.parametrize(("says", "plant"), PLANTED)
def test_breaking_a_rule_is_seen(whole: dict[str, Any], says: str, plant: Callable[[Any], object]) -> None:
    planted = _unshared(whole)
    plant(planted["services"])
    assert any(line.startswith(says) for line in problems(planted))


def _unshared(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: _unshared(value) for key, value in tree.items()}
    return [_unshared(each) for each in tree] if isinstance(tree, list) else copy.copy(tree)


def test_the_example_names_every_secret_and_holds_none() -> None:
    lines = [line for line in EXAMPLE.read_text().splitlines() if not line.startswith("#")]
    asked = {name for name, how, _ in VARIABLE.findall((FOLDER / "compose.yaml").read_text()) if how == ":?"}
    assert sorted(lines) == sorted(f"{name}=" for name in asked)
    ignored = subprocess.run(["git", "check-ignore", "-q", FOLDER / ".env"], cwd=ROOT)
    assert ignored.returncode == 0, "git would commit infra/compose/.env"


def test_the_command_of_the_manual_makes_every_secret(tmp_path: Path) -> None:
    (command,) = re.findall(r"^\(umask 077; awk .*$", (ROOT / "infra/README.md").read_text(), re.MULTILINE)
    place = tmp_path / "infra/compose"
    place.mkdir(parents=True)
    (place / ".env.example").write_text(EXAMPLE.read_text())
    subprocess.run(["bash", "-c", command], cwd=tmp_path, check=True)
    assert (place / ".env").stat().st_mode & 0o077 == 0
    lines = [line for line in (place / ".env").read_text().splitlines() if not line.startswith("#")]
    values = dict(line.split("=", 1) for line in lines)
    assert len(values) == 6 == len(set(values.values())) and all(len(each) == 48 for each in values.values())
    text = filled((FOLDER / "compose.yaml").read_text(), values)
    assert "${" not in text and yaml.safe_load(text)["services"]["ray-head"]["image"] == "cdrl:0.1.0-cpu"
    with pytest.raises(KeyError, match="RAY_AUTH_TOKEN: make infra/compose/.env as infra/README.md says"):
        filled(text + "${RAY_AUTH_TOKEN:?make infra/compose/.env as infra/README.md says}", {"RAY_AUTH_TOKEN": ""})


def test_compose_and_cluster_run_the_same_servers(whole: dict[str, Any]) -> None:
    (mlflow,) = (
        document["spec"]["template"]["spec"]["containers"][0]["command"]
        for document in built(ROOT / "infra/kubernetes/base")
        if document["kind"] == "Deployment"
    )
    ours = whole["services"]["mlflow"]["command"]
    hosts = "--allowed-hosts="
    assert [each for each in ours if hosts not in each] == [each for each in mlflow if hosts not in each]
    auth = configparser.ConfigParser()
    auth.read(ROOT / "infra/kubernetes/base/basic-auth.ini")
    database = auth["mlflow"]["database_uri"]
    assert f"--backend-store-uri={database}" in ours, "one database for both"
    # SQLAlchemy 2.1 takes another driver where none is named; the image has this one
    assert make_url(database).get_driver_name() == "psycopg2" and make_url(database).password is None
