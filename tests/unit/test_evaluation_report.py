"""The report: one file that loads nothing, holds every figure with its protocol, and trusts no text."""

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cdrl.data import Dataset
from cdrl.evaluation.insight import energies, learning_plot
from cdrl.evaluation.report import report
from cdrl.model import Model
from tests.evaluation_parts import digits, tiny_config, tiny_model
from tests.unit.test_evaluation_protocol import PROTOCOL, card


class Page(HTMLParser):
    """The tags, their attributes and the text of a page."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(content)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_it_holds_scores_protocol_and_pictures_and_loads_nothing() -> None:
    red = Image.new("RGB", (3, 2), "red")
    errors = {"frechet": 0.1, "precision": None, "recall": 0.02, "label_accuracy": None}
    made = card().model_copy(update={"errors": errors, "notes": ("4000 images are few",), "num_resamples": 100})
    content = report(made, {"schedule": red, "samples": red, "of my own": red})
    page = Page(content)
    for part in ("FD (digits-cnn)", "1.25 ± 0.10", "0.750 ± 0.020", "4000 images are few", PROTOCOL.digest):
        assert part in page.text
    for name in ("sampling.num_steps", "extractor_digest", "manifest_digest", "num_generated", "ema", "model_digest"):
        assert name in page.text
    sources = [attrs["src"] for tag, attrs in page.tags if tag == "img"]
    assert len(sources) == 3
    for source in sources:
        assert source is not None and source.startswith("data:image/png;base64,")
        assert Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))).size == (3, 2)
    assert page.text.index("Samples") < page.text.index("Schedule") < page.text.index("of my own")
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in page.tags}
    assert not re.search(r"https?://|url\(|@import", content)


def test_text_from_data_is_text() -> None:
    hostile = "<script>alert(1)</script>"
    page = Page(report(card().model_copy(update={"run_id": hostile, "notes": (hostile,)}), {}))
    assert "script" not in {tag for tag, _ in page.tags} and page.text.count(hostile) >= 3


def test_curves_of_learning_are_drawn_where_there_are_any() -> None:
    assert learning_plot({"f_pos": {}, "quick_score": {}}) is None
    one = learning_plot({"f_pos": {1: 0.5, 2: 0.4}, "f_neg": {}})
    pairs = learning_plot({"pair_0/f_pos": {1: 0.5}, "pair_1/f_pos": {1: 0.4}, "pair_0/loss_energy": {1: 2.0}})
    assert one is not None and pairs is not None and one.width > 500


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    root = tmp_path_factory.mktemp("report")
    return Model.load(tiny_model(tiny_config(digits(root / "digits"), root), root / "model"))


def test_energies_of_a_level_depend_on_nothing_else(model: Model) -> None:
    """A level asked alone gets what it gets among others; another seed is other noise."""
    data = Dataset.open(model.config.data.uri)
    rows = np.arange(5)
    found = energies(model, [0, 1], data.images(rows), data.labels(rows), seed=3)
    assert found.shape == (2, 5) and found.isfinite().all()
    again = energies(model, [1], data.images(rows), data.labels(rows), seed=3)
    torch.testing.assert_close(found[1:], again)
    assert not torch.equal(again, energies(model, [1], data.images(rows), data.labels(rows), seed=4))


def test_the_template_is_part_of_the_package() -> None:
    packaged = Path("setup.cfg").read_text()
    assert "evaluation/*.html" in packaged and "jinja2" in packaged
