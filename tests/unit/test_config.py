"""The configuration: strict keys, clear messages, honest identities, and the commands that show it."""

import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from typer.testing import CliRunner

from cdrl.cli import config as commands
from cdrl.config import Config, load, presets, schema, validate
from cdrl.errors import ConfigError


def refusal(source: str, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(source, overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("name", presets())
def test_every_preset_loads_under_its_own_name(name: str) -> None:
    assert load(name).name == name
    assert presets()[name], "the first line of a preset says what it is"


@pytest.mark.parametrize("name", presets())
def test_a_resolved_configuration_survives_json_and_yaml(name: str) -> None:
    config = load(name)
    assert Config.model_validate_json(config.model_dump_json()) == config
    again = validate(yaml.safe_load(yaml.safe_dump(config.model_dump(mode="json"))), where="yaml")
    assert (again, again.digest, again.run_id) == (config, config.digest, config.run_id)


@dataclasses.dataclass(frozen=True)
class Refused:
    override: str
    says: tuple[str, ...]


@pytest.mark.parametrize(
    "case",
    [
        Refused("training.sed=3", ("training.sed", "unknown", "'seed'")),
        Refused("trainning.seed=3", ("trainning", "unknown", "'training'")),
        Refused("training.energy.learning=1", ("training.energy.learning", "unknown", "warmup_updates")),
        Refused("training.num_updates=many", ("training.num_updates", "integer", "'many'")),
        Refused("training.num_updates=0", ("training.num_updates", "greater than or equal to 1", "got 0")),
        Refused("training.energy.lr=.inf", ("training.energy.lr", "finite")),
        Refused("training.energy.lr=1e-3x", ("training.energy.lr", "number", "'1e-3x'")),
        Refused("schedule.family=linear", ("schedule.family", "'cosine'", "'linear'")),
        Refused("training.seed=true", ("training.seed", "true or false", "got True")),
        Refused("data.flip=3", ("data.flip", "boolean", "got 3")),
        Refused("training=fast", ("training", "'fast'")),
        Refused("name=Digits_2", ("name", "'Digits_2'")),
        Refused("pairs=each", ("pairs", "'shared'", "'each'")),
        Refused("training.num_chunks=7", ("training", "batch_size 64", "num_chunks 7")),
        Refused("pairs=[[0,1],[1,2,3,4,5]]", ("pairs", "exactly once")),
        Refused("schedule.num_levels=0", ("schedule.num_levels", "greater than or equal to 1", "got 0")),
        Refused("schedule.warp=0", ("schedule.warp", "greater than 0", "got 0")),
        Refused("schedule.family=table", ("schedule", "family 'table'", "logsnr")),
        Refused("schedule.logsnr=[2,1,0,-1,-2,-3,-4]", ("schedule", "go together", "family 'cosine'")),
        Refused("schedule={family: table, logsnr: [1, 0]}", ("schedule", "7 values", "got 2")),
        Refused("schedule={family: table, logsnr: [1, x]}", ("schedule.logsnr.1", "number", "'x'")),
        Refused("schedule={family: table, logsnr: [.nan]}", ("schedule.logsnr.0", "finite")),
        Refused("schedule={family: drl_t6, warp: 2}", ("schedule", "warp belongs to family 'cosine'", "'drl_t6'")),
        Refused("training.clip_norm=0", ("training.clip_norm", "greater than 0", "got 0")),
        Refused("schedule.step_scale=[1.0e-4,1.0e-4]", ("step_scale", "2 values", "6 levels")),
        Refused("training.seed", ("--set", "a.b=value")),
        Refused("=3", ("--set", "a.b=value")),
        Refused("training.seed=[1", ("--set training.seed", "not YAML")),
        Refused("training.seed.x=1", ("training.seed",)),
    ],
    ids=lambda case: case.override,
)
def test_a_wrong_setting_is_refused_with_its_full_path(case: Refused) -> None:
    message = refusal("digits", case.override)
    for word in case.says:
        assert word in message


def test_every_mistake_is_named_at_once() -> None:
    message = refusal("digits", "training.sed=3", "data.num_classes=-1")
    assert "training.sed" in message and "data.num_classes" in message


@pytest.mark.parametrize(
    "source, says",
    [
        ("digit", "did you mean 'digits'"),
        ("nothing-like-it", "presets: "),
        ("absent.yaml", "No such file"),
        (".", "neither a preset nor a .yaml file"),
    ],
)
def test_a_wrong_source_is_refused(source: str, says: str) -> None:
    assert says in refusal(source)


@pytest.mark.parametrize(
    "text, says",
    [
        ("name: [", "not valid YAML"),
        ("- digits", "expected a mapping of settings, got list"),
        ("base: dijits", "did you mean 'digits'"),
        ("training: {seed: 1}", "name: Field required"),
        ("base: {mine}", "leads back to itself"),
        ("base: digits\n? [1, 2]\n: 3", "not valid YAML"),
        ("base: digits\n3: 4", "string"),
        ("base: digits\ntraining: {3: 4}", "training.3"),
        ("base: digits\ntraining: {seed: !!python/name:os.system }", "not valid YAML"),
    ],
)
def test_a_wrong_file_is_refused_by_name(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text.replace("{mine}", str(path)))
    message = refusal(str(path))
    assert says in message


def test_a_circle_of_bases_is_refused(tmp_path: Path) -> None:
    one, other = tmp_path / "one.yaml", tmp_path / "other.yaml"
    one.write_text(f"base: {other}")
    other.write_text(f"base: {one}")
    assert f"{one} -> {other} -> {one}" in refusal(str(one))


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    assert "not a text file" in refusal(str(path))


def test_a_file_lists_only_what_differs_from_its_base(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("base: digits\nname: mine\ntraining: {energy: {lr: 0.5}}\n")
    mine, base = load(str(path)), load("digits")
    assert mine.training.energy.lr == 0.5
    restored = mine.model_dump() | {"name": "digits"}
    restored["training"]["energy"]["lr"] = base.training.energy.lr
    assert restored == base.model_dump()


def test_an_override_equals_the_same_setting_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "digits.yaml"
    path.write_text("base: digits\ntraining: {seed: 9}\npairs: [[0, 1, 2], [3, 4, 5]]\ndata: {cache: null}\n")
    overridden = load("digits", ["training.seed=9", "pairs=[[0,1,2],[3,4,5]]", "data.cache=null"])
    assert overridden == load(str(path))


@given(st.integers(0, 2**31), st.integers(0, 2**31))
def test_the_last_override_wins(first: int, last: int) -> None:
    assert load("digits", [f"training.seed={first}", f"training.seed={last}"]).training.seed == last


def test_a_configuration_is_frozen() -> None:
    with pytest.raises(ValidationError):
        load("digits").training.seed = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    "override",
    [
        "cluster.num_workers=7",
        "cluster.use_gpu=true",
        "run.root=elsewhere",
        "run.storage=s3://bucket/runs",
        "tracking.uri=http://127.0.0.1:5000",
        "sampling.guidance=2.0",
        "evaluation.num_samples=10",
        "data.uri=s3://bucket/digits",
        "data.cache=there",
        "data.cache_bytes=1000000",
        "data.digest=0123456789ab",
    ],
)
def test_where_and_how_a_run_is_watched_is_not_its_identity(override: str) -> None:
    plain, moved = load("digits"), load("digits", [override])
    assert moved.run_id == plain.run_id
    assert moved.digest != plain.digest, "the digest covers the whole configuration"


@pytest.mark.parametrize(
    "override",
    [
        "name=other",
        "training.seed=6",
        "training.num_updates=7",
        "training.energy.lr=0.5",
        "energy.width=16",
        "initializer=null",
        "pairs=per_level",
        "schedule.num_levels=5",
        "schedule.warp=2",
        "schedule={family: table, logsnr: [6, 5, 4, 3, 2, 1, 0]}",
        "training.clip_norm=null",
        "data.num_classes=3",
        "data.flip=true",
        "data.stream=true",
    ],
)
def test_what_decides_the_weights_is_identity(override: str) -> None:
    plain, changed = load("digits"), load("digits", [override])
    assert changed.run_id != plain.run_id
    assert changed.digest != plain.digest


def test_settings_that_came_later_leave_the_runs_of_before_their_identity() -> None:
    assert "warp" not in load("digits").identity["schedule"]
    assert "logsnr" not in load("digits").identity["schedule"]
    assert load("digits", ["schedule.warp=2"]).identity["schedule"]["warp"] == 2.0
    assert "weight_power" not in load("digits").identity["schedule"]
    assert not {"start", "start_with"} & set(load("digits").identity["training"])
    assert load("digits", ["training.start=/a"]).run_id != load("digits", ["training.start=/b"]).run_id
    assert set(load("digits").identity["data"]) == {"shape", "num_classes", "flip"}
    streams = [load("digits", ["data.stream=true", f"data.window={window}"]).run_id for window in (2, 3)]
    assert streams[0] != streams[1]


@pytest.mark.parametrize("name", presets())
def test_a_run_id_is_the_name_and_a_short_digest(name: str) -> None:
    config = load(name)
    assert config.run_id.startswith(f"{name}-")
    assert len(config.run_id) == len(name) + 9
    assert len(config.digest) == 64


def test_no_two_presets_share_a_run() -> None:
    assert len({load(name).run_id for name in presets()}) == len(presets())


def test_every_setting_says_what_it_is() -> None:
    sections = [value for value in vars(schema).values() if isinstance(value, type)]
    fields = [
        (section.__name__, name, field)
        for section in sections
        if issubclass(section, schema.Section)
        for name, field in section.model_fields.items()
    ]
    leaves = [(where, name, field) for where, name, field in fields if "Config" not in str(field.annotation)]
    assert len(leaves) > 50
    assert [f"{where}.{name}" for where, name, field in leaves if not field.description] == []


def test_show_prints_the_resolved_configuration_as_yaml() -> None:
    result = CliRunner().invoke(commands.app, ["show", "digits-per-level", "--set", "training.seed=8"])
    assert result.exit_code == 0
    assert validate(yaml.safe_load(result.stdout), where="shown") == load("digits-per-level", ["training.seed=8"])


def test_check_names_the_run() -> None:
    result = CliRunner().invoke(commands.app, ["check", "digits"])
    assert result.exit_code == 0
    assert load("digits").run_id in result.stdout


def test_list_names_every_preset() -> None:
    result = CliRunner().invoke(commands.app, ["list"])
    assert result.exit_code == 0
    assert all(name in result.stdout for name in presets())


@pytest.mark.parametrize(
    "arguments, says",
    [
        (["digits", "--set", "training.sed=3"], "digits: training.sed: unknown setting; did you mean 'seed'?"),
        (["[/red].yaml"], "[/red].yaml: cannot read the file: No such file or directory"),
    ],
)
def test_the_command_line_says_one_line_and_exits_2(arguments: list[str], says: str) -> None:
    cdrl = str(Path(sys.executable).with_name("cdrl"))
    done = subprocess.run([cdrl, "config", "check", *arguments], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"error: {says}\n")


def test_a_password_in_a_tracking_uri_is_refused_and_not_repeated() -> None:
    with pytest.raises(ConfigError, match="tracking.uri: holds a password; set MLFLOW_TRACKING_USERNAME") as refusal:
        load("digits", ["tracking.uri=http://ada:lovelace@127.0.0.1:5000"])
    assert "lovelace" not in str(refusal.value)


@pytest.mark.parametrize("name", ["num_steps", "step_multiplier"])
def test_sampling_takes_one_number_or_one_per_level(name: str) -> None:
    one, each = (load("digits", [f"sampling.{name}={value}"]).sampling for value in ("8", "[8,8,4,4,2,2]"))
    assert (getattr(one, name), getattr(each, name)) == (8, (8, 8, 4, 4, 2, 2))
    texts = [(sampling.steps_text, sampling.multiplier_text) for sampling in (one, each)]
    assert [text[name == "step_multiplier"] for text in texts] == ["8", "8,8,4,4,2,2"]
    for value, message in (
        ("-1", f"sampling.{name}: Input should be greater than"),
        ("[1,1,1,1,1,-1]", f"sampling.{name}.5: Input should be greater than"),
        ("[1,1]", f"sampling.{name} has 2 values for 6 levels"),
        ("true", f"sampling.{name}: expected no true or false"),
    ):
        with pytest.raises(ConfigError, match=re.escape(message)):
            load("digits", [f"sampling.{name}={value}"])
