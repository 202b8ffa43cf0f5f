"""What is shipped: sampling in batches of fixed randomness, and files that are checked."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from cdrl.config import tree_digest
from cdrl.errors import CdrlError, ConfigError, RegistryError
from cdrl.method.inpainting import Inpainting
from cdrl.method.schedule import drl_t6
from cdrl.method.trace import Trace
from cdrl.model import Model, build_ladder, build_schedule
from tests.training_parts import tiny_config

NAMES = tuple("abcdefghij")


def make(*overrides: str, class_names: tuple[str, ...] = NAMES) -> Model:
    config = tiny_config(*overrides)
    torch.manual_seed(0)
    ladder = build_ladder(config).requires_grad_(False)
    for parameter in ladder.parameters():
        parameter.add_(0.05 * torch.randn_like(parameter))
    return Model(config, ladder, class_names, "ab" * 32, 7)


def test_a_set_of_samples_is_the_same_for_any_split_between_batches() -> None:
    model, labels = make(), torch.arange(10) % 11
    whole = model.sample(10, labels=labels, seed=3)
    assert whole.shape == (10, 1, 8, 8) and whole.dtype == torch.float32
    assert whole.abs().max() <= 1
    for cuts in ([0, 4, 10], [0, 8, 10], [0, 4, 8, 10]):  # batches of 4
        parts = [
            model.sample(stop - start, labels=labels[start:stop], seed=3, first=start)
            for start, stop in zip(cuts, cuts[1:], strict=False)
        ]
        assert torch.cat(parts).equal(whole)
    assert not model.sample(10, labels=labels, seed=4).equal(whole)
    assert not whole[:4].equal(whole[4:8])  # each batch has randomness of its own


def test_labels_decide_what_is_drawn() -> None:
    model = make()
    none = model.sample(4)
    assert model.sample(4, labels=0).equal(none)
    assert model.sample(4, labels=3).equal(model.sample(4, labels=torch.full((4,), 3)))
    assert not model.sample(4, labels=3).equal(none)


def test_sampling_options_replace_the_configurations() -> None:
    model = make()
    plain = model.sample(2, labels=1)
    for change in ({"num_steps": 3}, {"guidance": 2.0}, {"denoise_scale": 0.0}, {"noise_scale": 0.0}):
        options = model.config.sampling.model_copy(update=change)
        assert not model.sample(2, labels=1, sampling=options).equal(plain), change


def test_progress_and_trace() -> None:
    model, told, trace = make(), list[int](), Trace()
    model.sample(10, progress=told.append)
    assert told == [4, 4, 2]
    x = model.sample(3, record=trace)
    stages = trace.levels()
    assert len(stages) == model.schedule.num_levels + 2 and stages[-1].equal(x)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"labels": 11}, r"labels: expected 0 ... 10, got 11 ... 11"),
        ({"labels": -1}, r"labels: expected 0 ... 10, got -1"),
        ({"labels": torch.tensor([1, 2, 3])}, r"labels: expected one or 4, got \[3\]"),
        ({"first": 2}, "first image 2 is not a multiple of the batch size 4"),
        ({"num_images": 0}, "number of images: expected at least 1, got 0"),
    ],
)
def test_requests_that_make_no_sense_are_refused(request_: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make().sample(**{"num_images": 4} | request_)


def test_an_unconditional_model_takes_no_label_and_no_guidance() -> None:
    model = make("data.num_classes=0")
    assert model.sample(2).equal(model.sample(2, labels=0))
    with pytest.raises(ConfigError, match="labels: expected 0 ... 0"):
        model.sample(2, labels=1)
    guided = model.config.sampling.model_copy(update={"guidance": 1.0})
    with pytest.raises(ConfigError, match="guidance: 1 needs labels"):
        model.sample(2, sampling=guided)
    with pytest.raises(ConfigError, match="label 'a': the model's classes are: none"):
        model.label_of("a")


def test_labels_by_name() -> None:
    model = make()
    assert [model.label_of(name) for name in ("a", "j", "", None)] == [1, 10, 0, 0]
    with pytest.raises(ConfigError, match="label 'k': the model's classes are: a, b, c"):
        model.label_of("k")


@pytest.mark.parametrize("pairs", ["shared", "per_level"])
def test_what_is_read_is_what_was_written(tmp_path: Path, pairs: str) -> None:
    model = make(f"pairs={pairs}")
    model.write(tmp_path)
    files = ["pair-00.safetensors", "pair-01.safetensors"][: len(model.ladder.pairs)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.json", *files]
    again = Model.load(tmp_path)
    assert again.config == model.config and again.class_names == NAMES
    assert (again.manifest_digest, again.step, again.digest) == ("ab" * 32, 7, model.digest)
    assert len(model.digest) == 64
    assert again.sample(5, labels=2, seed=1).equal(model.sample(5, labels=2, seed=1))
    assert not any(parameter.requires_grad for parameter in again.ladder.parameters())


def test_the_digest_covers_the_weights(tmp_path: Path) -> None:
    digests = []
    for name, change in (("one", 0.0), ("same", 0.0), ("other", 1e-6)):
        (tmp_path / name).mkdir()
        model = make()
        model.ladder.pairs[0].energy.head.weight[0, 0] += change
        model.write(tmp_path / name)
        digests.append(model.digest)
    assert digests[0] == digests[1] != digests[2]


def edit(folder: Path, **changes: Any) -> None:
    tree = json.loads((folder / "model.json").read_text())
    if "config" in changes:
        changes["config_digest"] = tree_digest(changes["config"])
    (folder / "model.json").write_text(json.dumps(tree | changes))


def test_damage_is_named(tmp_path: Path) -> None:
    model, weights, card = make(), tmp_path / "pair-00.safetensors", tmp_path / "model.json"

    def refused(error: type[CdrlError], message: str) -> None:
        with pytest.raises(error, match=message) as caught:
            Model.load(tmp_path)
        assert "\n" not in str(caught.value)
        model.write(tmp_path)

    refused(RegistryError, "not a model: model.json is missing")
    weights.unlink()
    refused(RegistryError, "pair-00.safetensors is missing")
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    refused(RegistryError, "pair-00.safetensors: damaged: expected SHA-256 .*, got ")
    weights.write_bytes(weights.read_bytes()[:100])
    refused(RegistryError, "pair-00.safetensors: damaged")
    for text in ("", "[]", "{}", "\xff", card.read_text()[:-9]):
        card.write_text(text, encoding="latin-1")
        refused(RegistryError, "not a readable model")
    edit(tmp_path, files={})
    refused(RegistryError, "expected the files pair-00.safetensors, got none")
    edit(tmp_path, files={"../pair-00.safetensors": "00"})
    refused(RegistryError, "expected the files pair-00.safetensors, got ../pair-00.safetensors")
    edit(tmp_path, step="many")
    refused(RegistryError, "not a readable model: .*step")
    edit(tmp_path, class_names=["a"])
    refused(RegistryError, "expected the names of 10 classes, got 1")
    card.write_text(card.read_text().replace('"num_updates": 12', '"num_updates": 13'))
    refused(RegistryError, "the configuration was changed after it was written")
    edit(tmp_path, format=2)
    refused(RegistryError, "model.json: expected format 1, got 2")
    edit(tmp_path, config=make("energy.width=8").config.model_dump(mode="json"))
    refused(RegistryError, "does not fit the configuration: .*size mismatch")
    edit(tmp_path, config={"name": "tiny", "energie": {}})
    refused(ConfigError, "energie: unknown setting; did you mean 'energy'")


def test_the_schedule_is_the_configurations() -> None:
    config = tiny_config("schedule.family=drl_t6", "schedule.num_levels=6", "schedule.step_scale=[1,1,1,1,1,2]")
    schedule = build_schedule(config.schedule)
    assert schedule.logsnr.equal(drl_t6())
    sizes = schedule.transition(torch.arange(6), torch.empty(6)).step_size
    assert (sizes[5] / build_schedule(tiny_config().schedule).transition(0, torch.empty(1)).step_size[0]) > 1
    assert make().schedule.num_levels == 2


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["energy.kind=mlp", "energy.patch=1"], "does not go with energy.kind 'mlp'"),
        (["initializer.kind=mlp"], "data.shape"),
        (["data.shape=[2]"], r"data.shape \[2\] does not go with"),
        (["data.shape=[1,8,6]"], "images must be square"),
        (["energy.patch=3"], "images of side 8 do not split into patches of 3"),
        (["energy.multipliers=[1,1,1,1]"], "patches of 2 and then halve 3 times"),
        (["energy.width=5"], "energy.width"),
        (["initializer.groups=3"], "initializer.groups: 3 groups do not divide 4 channels"),
    ],
)
def test_networks_that_do_not_go_with_the_data_are_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_ladder(tiny_config(*overrides))


def test_points_with_classes() -> None:
    """Both nets see the label; points are not clamped."""
    mlp = ("energy.kind=mlp", "energy.patch=1", "initializer.kind=mlp", "initializer.width=8", "initializer.groups=2")
    model = make("data.shape=[2]", "data.num_classes=3", *mlp, class_names=("x", "y", "z"))
    initializer = model.ladder[0].initializer
    x_t = torch.randn(3, 2)
    logsnr, label = torch.zeros(3), torch.tensor([1, 2, 3])
    assert not torch.allclose(initializer(x_t, logsnr, label), initializer(x_t, logsnr))
    x = model.sample(50, labels=torch.arange(50) % 4)
    assert x.shape == (50, 2) and x.abs().max() > 1


def test_a_composition_of_one_class_is_guidance_and_of_two_is_neither() -> None:
    model = make()
    guided = model.config.sampling.model_copy(update={"guidance": 0.7})
    one = model.sample(6, composition={3: 0.7}, seed=1)
    torch.testing.assert_close(one, model.sample(6, labels=3, sampling=guided, seed=1))
    two = model.sample(6, composition={3: 0.7, 4: -2.0}, seed=1)
    assert not torch.allclose(two, one, atol=1e-3)
    assert two.equal(torch.cat([model.sample(4, composition={3: 0.7, 4: -2.0}, seed=1), two[4:]]))


@pytest.mark.parametrize(
    ("classes", "request_", "message"),
    [
        (10, {"composition": {0: 1.0}}, r"composition: expected labels 1 ... 10, got 0"),
        (10, {"composition": {1: 1.0, 11: 1.0}}, r"composition: expected labels 1 ... 10, got 11"),
        (10, {"composition": {1: float("nan")}}, r"composition: expected finite weights, got \[nan\]"),
        (10, {"composition": {}}, "one weight for each of 0 labels"),
        (10, {"composition": {1: 1.0}, "labels": 2}, "composition: it brings the labels"),
        (10, {"composition": {1: 1e30}}, "4 of 4 samples are not finite; lower the composition's weights"),
        (0, {"composition": {1: 1.0}}, "composition: the model is unconditional"),
    ],
)
def test_compositions_that_make_no_sense_are_refused(classes: int, request_: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make(f"data.num_classes={classes}").sample(4, **request_)


def test_known_pixels_are_kept_in_every_batch() -> None:
    model, image = make(), torch.rand(6, 1, 8, 8) * 2 - 1
    left = torch.arange(8) < 4
    x = model.sample(6, inpainting=Inpainting(image, left, num_rounds=2), seed=1)
    assert x[..., :4].equal(image[..., :4]) and not x[..., 4:].equal(image[..., 4:])
    assert model.sample(6, inpainting=Inpainting(image, ~left | left)).equal(image)
    nothing = Inpainting(image, torch.zeros(8, dtype=torch.bool))
    assert model.sample(6, inpainting=nothing, labels=2).equal(model.sample(6, labels=2))
    with pytest.raises(ConfigError, match=r"inpainting: expected images \[5, 1, 8, 8\], got \[6, 1, 8, 8\]"):
        model.sample(5, inpainting=nothing)


def test_steps_and_their_size_may_differ_by_level() -> None:
    model = make()

    def drawn(**change: Any) -> torch.Tensor:
        return model.sample(2, labels=1, sampling=model.config.sampling.model_copy(update=change))

    assert drawn(num_steps=(3, 3), step_multiplier=(0.5, 0.5)).equal(drawn(num_steps=3, step_multiplier=0.5))
    assert not drawn(num_steps=(3, 0)).equal(drawn(num_steps=(0, 3)))
    assert not drawn(step_multiplier=(1.0, 2.0)).equal(drawn(step_multiplier=(2.0, 1.0)))
