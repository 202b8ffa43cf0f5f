"""The proof: what a package was made of and the SHA-256 of all its files, so that a change shows without a server.

A package is `model.json`, `pair-*.safetensors`, `schedule.json`, `scorecard.json` and `proof.json`. In a version it
lies inside MLflow's own layout (`FOLDER`), around which stand MLmodel, the code and their like: the wrapper.
"""

import json
import math
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from cdrl import __version__
from cdrl import config as configuration
from cdrl.build import build_schedule
from cdrl.config import ScheduleConfig, tree_digest
from cdrl.errors import RegistryError
from cdrl.evaluation.protocol import ScoreCard
from cdrl.model import Model
from cdrl.storage import sha256_file

__all__ = [
    "FOLDER",
    "NAME",
    "SCHEDULE",
    "SCORECARD",
    "Proof",
    "card_of",
    "check_package",
    "check_version",
    "first_fault",
    "package_in",
    "schedule_table",
    "seal",
]

FOLDER = "artifacts/package"  # where MLflow puts the artifact `package`
NAME, SCHEDULE, SCORECARD = "proof.json", "schedule.json", "scorecard.json"
MLFLOWS_OWN = "registered_model_meta"  # MLflow leaves it where a version is loaded from a local store
CODE = "code/"
RELATIVE = 1e-9  # between two builds of torch


class Proof(BaseModel):
    """`proof.json`.

    Attributes:
        cdrl_version, code_digest: the code that goes with the package, all its files as one SHA-256.
        model_digest: of model.json, which holds the digests of the weights.
        config_digest, manifest_digest, step: the configuration, the training data, the updates behind the weights.
        run_id, which: the run and the checkpoint; empty for a package that was put together.
        made_from: what such a package was put together from.
        files: SHA-256 of every other file of the package.
        wrapper: the same of every file around it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: int = 1
    cdrl_version: str = __version__
    code_digest: str
    model_digest: str
    config_digest: str
    manifest_digest: str
    step: int
    run_id: str
    which: str
    made_from: str = ""
    files: dict[str, str]
    wrapper: dict[str, str]


def seal(version: Path, model: Model, **origin: str) -> str:
    """Write the proof into a version's folder, everything else of which is there; its SHA-256.

    Args:
        origin: run_id, which and made_from of `Proof`.
    """
    package = version / FOLDER
    wrapper = {name: digest for name, digest in _digests(version).items() if not name.startswith(f"{FOLDER}/")}
    proof = Proof(
        code_digest=_code_digest(wrapper),
        model_digest=model.digest,
        config_digest=_tree(package / "model.json")["config_digest"],
        manifest_digest=model.manifest_digest,
        step=model.step,
        files=_digests(package),
        wrapper=wrapper,
        **origin,
    )
    (package / NAME).write_text(proof.model_dump_json(indent=1) + "\n")
    return sha256_file(package / NAME)


def check_package(package: Path, expected: str | None = None) -> Proof:
    """Recompute every digest of a package.

    Args:
        expected: SHA-256 of the proof itself, from somewhere else.

    Raises:
        RegistryError: no proof, a file too many, too few or changed, or one that contradicts another.
    """
    place = package / NAME
    if not place.is_file():
        raise RegistryError(f"{package}: no {NAME}: nothing proves what this is; register its run again")
    if expected is not None and (found := sha256_file(place)) != expected:
        raise RegistryError(f"{place}: the server knows the proof {expected[:12]}, this is {found[:12]}; refused")
    try:
        proof = Proof.model_validate(_tree(place))
    except ValidationError as error:
        raise RegistryError(f"{place}: not a readable proof: {first_fault(error)}") from None
    _compare(package, {**proof.files, NAME: sha256_file(place)})
    _check_model(package, proof)
    return proof


def check_version(version: Path, expected: str | None = None) -> Proof:
    """The same for a package and everything around it.

    Raises:
        RegistryError: as `check_package`.
    """
    proof = check_package(version / FOLDER, expected)
    _compare(version, proof.wrapper, inside=FOLDER)
    if (found := _code_digest(proof.wrapper)) != proof.code_digest:
        raise RegistryError(f"{version}: expected code {proof.code_digest[:12]}, got {found[:12]}; refused")
    return proof


def package_in(folder: Path) -> Path:
    """The package of a folder that holds one, or is one."""
    inside = folder / FOLDER
    return inside if inside.is_dir() else folder


def card_of(package: Path) -> ScoreCard | None:
    """The score card of a package, if it has one.

    Raises:
        RegistryError: it is not readable.
    """
    place = package / SCORECARD
    if not place.is_file():
        return None
    try:
        return ScoreCard.model_validate_json(place.read_bytes())
    except ValidationError as error:
        raise RegistryError(f"{place}: not a readable score card: {first_fault(error)}") from None


def schedule_table(config: ScheduleConfig) -> dict[str, list[float]]:
    """`schedule.json`: logSNR of t = 0 ... T and the squared Langevin step size of each level, in float64."""
    schedule = build_schedule(config)
    return {"logsnr": schedule.logsnr.tolist(), "step_size": schedule.constants.step_size.tolist()}


def first_fault(error: ValidationError) -> str:
    """Where and why, in a few words."""
    first = error.errors()[0]
    where = ".".join(map(str, first["loc"]))
    return f"{where}: {first['msg']}" if where else first["msg"]


def _check_model(package: Path, proof: Proof) -> None:
    """What a package says of itself in several places must be the same."""
    place = package / "model.json"
    tree = _tree(place)
    card = card_of(package)
    try:
        config = configuration.validate(tree["config"], where=str(place))
        claims = [
            ("model", proof.model_digest, proof.files["model.json"]),
            ("configuration", proof.config_digest, tree_digest(tree["config"])),
            ("configuration", proof.config_digest, tree["config_digest"]),
            ("data manifest", proof.manifest_digest, tree["manifest_digest"]),
            *((f"weights of {name}", proof.files.get(name), digest) for name, digest in tree["files"].items()),
        ]
    except (KeyError, TypeError, AttributeError):
        raise RegistryError(f"{place}: not a readable model") from None
    if card is not None:
        claims.append(("model of the score card", proof.model_digest, card.model_digest))
        claims.append(("data of the score card", proof.manifest_digest, card.protocol.manifest_digest))
    for what, expected, found in claims:
        if expected != found:
            raise RegistryError(f"{package}: {what}: expected {str(expected)[:12]}, got {str(found)[:12]}; refused")
    written, computed = _tree(package / SCHEDULE), schedule_table(config.schedule)
    for name, values in computed.items():
        theirs = written.get(name)
        if not isinstance(theirs, list) or len(theirs) != len(values):
            raise RegistryError(f"{package / SCHEDULE}: {name}: expected {len(values)} numbers")
        if not all(math.isclose(a, b, rel_tol=RELATIVE) for a, b in zip(theirs, values, strict=True)):
            raise RegistryError(f"{package / SCHEDULE}: {name} is not what this code makes of the configuration")


def _compare(folder: Path, expected: dict[str, str], inside: str | None = None) -> None:
    """Every file below a folder (without that below `inside`) must be expected, and the other way round."""
    found = set(_names(folder))
    if inside is not None:
        found = {name for name in found if not name.startswith(f"{inside}/")} - {MLFLOWS_OWN}
    if extra := sorted(found - set(expected)):
        raise RegistryError(f"{folder}: its proof does not know {_some(extra)}; refused: nobody says what that is")
    if missing := sorted(set(expected) - found):
        raise RegistryError(f"{folder}: {_some(missing)} missing; use another copy")
    for name in sorted(found):
        if (folder / name).is_symlink():
            raise RegistryError(f"{folder}: {name} is a link; refused")
        if (digest := sha256_file(folder / name)) != expected[name]:
            raise RegistryError(
                f"{folder / name}: changed after the package was made: expected SHA-256 {expected[name][:12]}, got "
                f"{digest[:12]}; refused"
            )


def _digests(folder: Path) -> dict[str, str]:
    return {name: sha256_file(folder / name) for name in _names(folder)}


def _names(folder: Path) -> list[str]:
    """All that lies below a folder and is no folder, by name."""
    below = (path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    return sorted(path.relative_to(folder).as_posix() for path in below)


def _code_digest(wrapper: dict[str, str]) -> str:
    return tree_digest({name: digest for name, digest in wrapper.items() if name.startswith(CODE)})


def _tree(place: Path) -> dict[str, Any]:
    try:
        tree = json.loads(place.read_bytes())
    except (OSError, ValueError):
        raise RegistryError(f"{place}: missing or damaged; use another copy") from None
    if not isinstance(tree, dict):
        raise RegistryError(f"{place}: damaged: expected an object")
    return tree


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:5])
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"
