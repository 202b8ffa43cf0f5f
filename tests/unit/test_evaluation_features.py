"""The classifier, the registry of feature nets, and Inception with weights made here (no score)."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from torch_fidelity import feature_extractor_clip, registry

from cdrl import config as configuration
from cdrl.config import Config
from cdrl.data import Dataset
from cdrl.data.prepare import Options, prepare
from cdrl.errors import ConfigError, DataError, StorageError
from cdrl.evaluation import classifier
from cdrl.evaluation.classifier import Recipe, find_or_train, load
from cdrl.evaluation.extractor import Coordinates, FidelityExtractor
from cdrl.evaluation.features import Judge, extractor_for
from cdrl.evaluation.fidelity import frechet_distance, measure
from cdrl.evaluation.pretrained import INCEPTION_SHA256
from tests.evaluation_parts import blank_inception, digits, tiny_config

SHORT = Recipe(num_updates=10)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("features")
    prepare("digits", str(root / "digits"))
    digits(root / "few")
    prepare("checkerboard", str(root / "points"), Options(limit=200))
    return root


@pytest.fixture(scope="module")
def config(folder: Path) -> Config:
    return tiny_config(str(folder / "digits"), folder)


@pytest.fixture(scope="module")
def train(config: Config) -> Dataset:
    return Dataset.open(config.data.uri)


@pytest.fixture(scope="module")
def holdout(config: Config) -> Dataset:
    return Dataset.open(config.data.uri, "holdout")


@pytest.fixture(scope="module")
def extractor(config: Config, train: Dataset, holdout: Dataset) -> FidelityExtractor:
    found = extractor_for(config, train, holdout)
    assert isinstance(found, FidelityExtractor)
    return found


@pytest.fixture(scope="module")
def inception_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return blank_inception(tmp_path_factory.mktemp("inception"))


def with_inception(config: Config, weights: Path, *more: str) -> Config:
    return configuration.override(config, ["evaluation.extractor=inception", f"evaluation.weights={weights}", *more])


def test_the_classifier_knows_digits_that_it_never_saw(config: Config, train: Dataset, holdout: Dataset) -> None:
    judge = Judge(train, holdout, config.data.cache, "cpu")
    rows = np.arange(len(holdout))
    assert judge.accuracy is not None and judge.accuracy >= 0.985
    agreement = judge.agreement(holdout.images(rows), holdout.labels(rows))
    assert agreement == pytest.approx(judge.accuracy, abs=1e-4)
    wrong = holdout.labels(rows) % 10 + 1
    assert judge.agreement(holdout.images(rows), wrong) == pytest.approx(0, abs=0.02)
    assert judge.agreement(holdout.images(rows), np.zeros(len(rows), np.int64)) is None


def test_its_distance_grows_with_noise(extractor: FidelityExtractor, train: Dataset, holdout: Dataset) -> None:
    reference = measure(train.images, len(train), extractor).moments
    clean = holdout.images(np.arange(len(holdout))).astype(np.float64)
    noise = np.random.default_rng(0).normal(size=clean.shape)
    noisy = [(clean + scale * noise).clip(0, 255).astype(np.uint8) for scale in (0, 20, 50, 100)]
    measured = [measure(images.__getitem__, len(images), extractor) for images in noisy]
    seen = [frechet_distance(each.moments, reference) for each in measured]
    assert seen == sorted(seen)
    assert seen[0] < 1 < 10 < seen[-1]


def test_it_is_never_called_fid(extractor: FidelityExtractor, train: Dataset) -> None:
    assert extractor.metric == "FD (digits-cnn)"
    assert extractor.name == "cdrl-classifier/features"
    assert extractor.features(train.images(np.arange(5))).shape == (5, 32)


def test_features_come_through_torch_fidelity(extractor: FidelityExtractor, train: Dataset) -> None:
    assert "cdrl-classifier" in registry.FEATURE_EXTRACTORS_REGISTRY
    images = train.images(np.arange(250))
    with torch.no_grad():
        expected = extractor.net.classifier(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(extractor.features(images), expected, atol=1e-5)


def test_extraction_leaves_the_random_state_alone(config: Config, train: Dataset, holdout: Dataset) -> None:
    before = torch.get_rng_state()
    extractor_for(config, train, holdout).features(train.images(np.arange(5)))
    find_or_train(train, None, Path(str(config.data.cache)) / "other", SHORT)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_same_data_give_the_same_net(train: Dataset, tmp_path: Path) -> None:
    before = torch.get_num_threads()
    first = find_or_train(train, None, tmp_path / "a", SHORT)
    torch.set_num_threads(2)
    torch.manual_seed(99)
    second = find_or_train(train, None, tmp_path / "b", SHORT)
    assert torch.get_num_threads() == 2
    torch.set_num_threads(before)
    assert load(first)[1].sha256 == load(second)[1].sha256
    other = find_or_train(train, None, tmp_path / "b", Recipe(num_updates=10, seed=1))
    assert other != second and load(other)[1].sha256 != load(second)[1].sha256


def test_it_is_trained_once(train: Dataset, tmp_path: Path) -> None:
    folder = find_or_train(train, None, tmp_path, SHORT)
    written = (folder / classifier.WEIGHTS_NAME).stat().st_mtime_ns
    assert find_or_train(train, None, tmp_path, SHORT) == folder
    assert (folder / classifier.WEIGHTS_NAME).stat().st_mtime_ns == written
    assert [path.name for path in tmp_path.iterdir()] == [folder.name], "nothing is left aside"


def test_without_holdout_its_accuracy_is_unknown(train: Dataset, tmp_path: Path) -> None:
    assert load(find_or_train(train, None, tmp_path, SHORT))[1].accuracy is None


@pytest.mark.parametrize("name", [classifier.WEIGHTS_NAME, classifier.CARD_NAME])
def test_a_damaged_classifier_is_not_used(name: str, train: Dataset, tmp_path: Path) -> None:
    folder = find_or_train(train, None, tmp_path, SHORT)
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[:-8] + bytes(8))
    with pytest.raises(DataError, match="delete the folder"):
        find_or_train(train, None, tmp_path, SHORT)


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (3, 64, 48), (1, 5, 5)])
def test_it_fits_images_of_any_size(shape: tuple[int, ...]) -> None:
    net = classifier.Classifier(shape, 7, 0.0).eval()
    features = net(torch.zeros(3, *shape, dtype=torch.uint8))
    assert features.shape == (3, 32 if max(shape) <= 16 else 64)
    assert set(net.labels(features.detach().numpy())) <= set(range(1, 8))


def test_points_are_their_own_features(folder: Path, config: Config) -> None:
    points = Dataset.open(str(folder / "points"))
    found = extractor_for(configuration.override(config, ["evaluation.extractor=coordinates"]), points, None)
    assert isinstance(found, Coordinates) and "FID" not in found.metric
    rows = points.images(np.arange(9))
    assert (found.features(rows) == rows).all()


@pytest.mark.parametrize("kind, place", [("classifier", "points"), ("inception", "points"), ("coordinates", "digits")])
def test_an_extractor_that_does_not_go_with_the_data(kind: str, place: str, folder: Path, config: Config) -> None:
    wanted = configuration.override(config, [f"evaluation.extractor={kind}"])
    with pytest.raises(ConfigError, match=f"evaluation.extractor: {kind} does not go with data of shape"):
        extractor_for(wanted, Dataset.open(str(folder / place)), None)


def test_a_classifier_needs_labels(config: Config, tmp_path: Path) -> None:
    from PIL import Image

    for number in range(4):
        Image.new("L", (8, 8), 60 * number).save(tmp_path / f"{number}.png")
    prepare("folder", str(tmp_path / "made"), Options(path=str(tmp_path), holdout=0))
    with pytest.raises(ConfigError, match="needs images with labels of at least 2 classes.* 0 classes; use inception"):
        extractor_for(config, Dataset.open(str(tmp_path / "made")), None)


def test_inception_with_weights_of_our_own(config: Config, train: Dataset, inception_weights: Path) -> None:
    digest = hashlib.sha256(inception_weights.read_bytes()).hexdigest()
    found = extractor_for(with_inception(config, inception_weights, f"evaluation.weights_sha256={digest}"), train, None)
    assert found.digest == digest and found.name == "inception-v3-compat/2048"
    assert found.metric == f"FD (inception, unknown weights {digest[:8]})", "only the standard weights make a FID"
    gray = train.images(np.arange(2))
    features = found.features(gray)
    assert features.shape == (2, 2048) and features.dtype == np.float32
    np.testing.assert_allclose(found.features(gray.repeat(3, axis=1)), features, rtol=1e-5)


def test_inception_weights_with_another_digest(config: Config, train: Dataset, inception_weights: Path) -> None:
    with pytest.raises(DataError, match=f"expected Inception weights of SHA-256 {INCEPTION_SHA256[:12]}"):
        wanted = with_inception(config, inception_weights, f"evaluation.weights_sha256={INCEPTION_SHA256}")
        extractor_for(wanted, train, None)


class Planted:
    """What a hostile weights file could hold."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.path,)


def test_a_weights_file_with_code_is_refused_and_not_run(config: Config, train: Dataset, tmp_path: Path) -> None:
    torch.save({"fc.bias": Planted(tmp_path / "run")}, tmp_path / "planted.pt")
    with pytest.raises(ConfigError, match="is no file of Inception weights: it does not hold tensors alone"):
        extractor_for(with_inception(config, tmp_path / "planted.pt"), train, None)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("content", [{"a": torch.zeros(1)}, [1, 2]])
def test_other_tensors_are_no_weights(content: object, config: Config, train: Dataset, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "other.pt")
    with pytest.raises(ConfigError, match="is no file of Inception weights"):
        extractor_for(with_inception(config, tmp_path / "other.pt"), train, None)


def test_text_is_no_inception_weights(config: Config, train: Dataset, tmp_path: Path) -> None:
    (tmp_path / "text.pt").write_text("hello")
    with pytest.raises(ConfigError, match="is no file of Inception weights"):
        extractor_for(with_inception(config, tmp_path / "text.pt"), train, None)


def test_missing_inception_weights(config: Config, train: Dataset, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot read .*nowhere.pt"):
        extractor_for(with_inception(config, tmp_path / "nowhere.pt"), train, None)


@pytest.fixture(scope="module")
def clip_weights() -> dict[str, torch.Tensor]:
    """Random tensors of CLIP's shapes, of a narrow one: no feature net worth a score."""
    torch.manual_seed(0)
    visual = feature_extractor_clip.CLIPVisual(16, 64, 1, 64, 32)
    return {**visual.state_dict(), "text_projection": torch.zeros(8, 16)}


def with_clip(config: Config, weights: Path) -> Config:
    return with_inception(config, weights, "evaluation.extractor=clip-vit-b-32")


def test_clip_with_weights_of_our_own(
    clip_weights: dict[str, torch.Tensor], config: Config, train: Dataset, tmp_path: Path
) -> None:
    torch.save(clip_weights, tmp_path / "clip.pt")
    found = extractor_for(with_clip(config, tmp_path / "clip.pt"), train, None)
    assert found.metric == f"FD (clip-vit-b-32, unknown weights {found.digest[:8]})"
    gray = train.images(np.arange(2))
    features = found.features(gray)
    assert features.shape == (2, 16) and features.std() > 0
    np.testing.assert_allclose(found.features(gray.repeat(3, axis=1)), features, rtol=1e-5)
    assert found.logits(features) is None, "it knows no classes"


class Archived(torch.nn.Module):
    """Tensors under names with dots, as the published archive has them."""

    def __init__(self, state: dict[str, torch.Tensor]) -> None:
        super().__init__()
        for name, tensor in state.items():
            place: torch.nn.Module = self
            *folders, last = name.split(".")
            for folder in folders:
                if not hasattr(place, folder):
                    place.add_module(folder, torch.nn.Module())
                place = getattr(place, folder)
            place.register_buffer(last, tensor)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return image


def test_an_archive_is_opened_if_it_is_the_published_one(
    clip_weights: dict[str, torch.Tensor],
    config: Config,
    train: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.jit.save(torch.jit.script(Archived(clip_weights)), tmp_path / "clip.pt")
    with pytest.raises(ConfigError, match="is no file of CLIP weights"):
        extractor_for(with_clip(config, tmp_path / "clip.pt"), train, None)
    digest = hashlib.sha256((tmp_path / "clip.pt").read_bytes()).hexdigest()
    monkeypatch.setitem(feature_extractor_clip.MODEL_METADATA["clip-vit-b-32"], "hash", digest)
    found = extractor_for(with_clip(config, tmp_path / "clip.pt"), train, None)
    assert found.metric == "FD (clip-vit-b-32)"
    assert found.features(train.images(np.arange(2))).shape == (2, 16)


@pytest.mark.usefixtures("no_network")
def test_no_network_to_download_from(
    config: Config, train: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    wanted = configuration.override(config, ["evaluation.extractor=inception"])
    with pytest.raises(StorageError, match="cannot download the Inception weights .* set evaluation.weights to a copy"):
        extractor_for(wanted, train, None)
    assert not list(tmp_path.rglob("*.pth*"))
