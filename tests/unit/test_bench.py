"""A report is consistent with itself and with the arithmetic of the method; times themselves are nobody's test."""

import json
import re
import statistics
import sys

import pytest
import torch

from cdrl import config as configuration
from cdrl.bench.compare import Report, Spread, compare
from cdrl.bench.counting import Count
from cdrl.bench.machine import describe, device_of, peak_flops
from cdrl.bench.meters import CpuMeter, Laps
from cdrl.bench.parity import parity
from cdrl.bench.subject import PHASES, Subject
from cdrl.bench.table import report_table
from cdrl.cli import main
from cdrl.errors import ConfigError
from cdrl.method.formulation import Plain

CPU = torch.device("cpu")
TINY = [
    *("data.shape=[1,8,8]", "energy.width=8", "energy.num_blocks=1", "energy.multipliers=[1,2]"),
    *("initializer.width=8", "initializer.groups=4", "initializer.num_blocks=1", "initializer.multipliers=[1]"),
    *("initializer.attention_resolutions=[]", "training.num_steps=3", "sampling.num_steps=2"),
]


def tiny(*more: str) -> configuration.Config:
    return configuration.load("cifar10", [*TINY, *more])


@pytest.fixture(scope="module")
def report() -> Report:
    said: list[tuple[str, int, int]] = []
    found = compare(
        tiny(), batch_size=4, device=CPU, repeats=3, samplings=2, progress=lambda *words: said.append(words)
    )
    assert said[-1] == ("sampling batches", 2, 2) and ("updates", 3, 3) in said
    return found


def test_phases_add_up_to_the_update(report: Report) -> None:
    for figures in report.figures.values():
        assert set(figures.phases_s) == set(PHASES)
        total = sum(figures.phases_s.values())
        assert 0.5 * figures.update_s.low < total < 1.5 * figures.update_s.high  # medians of the phases, each by itself
        assert figures.phases_s["chain"] < figures.update_s.high
        assert figures.images_per_s == pytest.approx(4 / figures.update_s.median)
        assert figures.chain_steps_per_s == pytest.approx(3 / figures.chain_s.median)
        assert figures.sampling_s is not None and figures.samples_per_s == pytest.approx(4 / figures.sampling_s.median)


def test_counts_are_the_formula(report: Report) -> None:
    """2 K f for the chain, 6 f + 3 g more for an update; 2 (K T + 1) f + T g for a sample."""
    subject, K, T = Subject(tiny(), Plain(), 1, CPU), 3, 6
    x, logsnr = torch.randn(1, 1, 8, 8), torch.zeros(1)
    with torch.no_grad(), Count() as f:
        subject.pair.energy(x, logsnr)
    assert subject.pair.initializer is not None
    with torch.no_grad(), Count() as g:
        subject.pair.initializer(x, logsnr)
    expected = {
        "chain_flops": 2 * K * f.flops,
        "update_flops": (2 * K + 6) * f.flops + 3 * g.flops,
        "sample_flops": 2 * (2 * T + 1) * f.flops + T * g.flops,
    }
    for name, flops in expected.items():
        plain, fast = (getattr(report.figures[side].counts, name) for side in ("plain", "fast"))
        assert 0.9 * flops < plain <= 1.005 * flops, name
        assert 0.6 * flops < fast <= plain, name
    for name in ("update_kernels", "sampling_kernels"):
        assert getattr(report.figures["fast"].counts, name) < getattr(report.figures["plain"].counts, name)


def test_ratios_are_those_of_the_rounds(report: Report) -> None:
    plain, fast = report.figures["plain"], report.figures["fast"]
    assert report.speedup.keys() == plain.rounds_s.keys() == {"update", "chain", "sampling"}
    for of, spread in report.speedup.items():
        ratios = [p / f for p, f in zip(plain.rounds_s[of], fast.rounds_s[of], strict=True)]
        assert len(ratios) == (2 if of == "sampling" else 3)
        assert (spread.low, spread.high) == (min(ratios), max(ratios)) and min(ratios) > 0
        assert spread.median == pytest.approx(statistics.median(ratios))
    for figures in (plain, fast):
        assert figures.update_s == Spread.of(figures.rounds_s["update"])
        rate = figures.counts.update_flops * figures.images_per_s
        chain = figures.counts.chain_flops * 4 / figures.chain_s.median
        assert figures.utilisation["update"] / figures.utilisation["chain"] == pytest.approx(rate / chain)


def test_a_report_is_json_and_a_table(report: Report) -> None:
    values = json.loads(json.dumps(report.plain_values()))
    assert values["figures"]["fast"]["counts"] == vars(report.figures["fast"].counts)
    assert values["speedup"]["chain"].keys() == {"median", "low", "high"}
    assert values["machine"]["torch"] == torch.__version__ and values["machine"]["cpu"]
    table = report_table(report)
    rows = list(zip(*(column.cells for column in table.columns), strict=True))
    assert {row[0].strip() for row in rows} >= set(PHASES.values())
    assert f"{report.speedup['update'].median:.2f}x" in rows[0][3]


def test_spread() -> None:
    assert Spread.of([3.0, 1.0, 10.0]) == Spread(3.0, 1.0, 10.0)


def test_laps_book_all_that_passes_once() -> None:
    class Ruler:
        marks = iter([10, 13, 14, 20])

        def read(self) -> int:
            return next(self.marks)

        def between(self, before: int, after: int) -> float:
            return after - before

    laps = Laps(Ruler())
    for phase in ("a", "b", "a"):
        laps(phase)
    assert laps.spent() == {"a": 9, "b": 1}


@pytest.mark.parametrize(
    "more",
    [
        ("initializer=null", "training.shared_noise=false"),
        ("data.num_classes=3", "sampling.guidance=1.5"),
        ("pairs=per_level",),
        ("training.anchor=1", "compute.chain_precision=bf16", "compute.initializer_precision=bf16"),
    ],
)
def test_other_configurations_are_measured_too(more: tuple[str, ...]) -> None:
    found = compare(tiny(*more), batch_size=2, device=CPU, repeats=1, samplings=0)
    assert found.speedup.keys() == {"update", "chain"} and found.figures["fast"].sampling_s is None
    absent = {"initializer"} if "initializer=null" in more else set()
    assert set(found.figures["plain"].phases_s) == set(PHASES) - absent
    assert report_table(found).row_count > 10


@pytest.mark.parametrize(
    ("setting", "message"),
    [("training.num_steps=0", "a benchmark needs a chain"), ("compute.formulation=plain", "fast beside plain")],
)
def test_nothing_to_compare_is_refused(setting: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        compare(tiny(setting), batch_size=2, device=CPU, repeats=1, samplings=0)


def test_formats_err_in_the_order_of_their_bits() -> None:
    subject = Subject(tiny(), Plain(), 8, CPU)
    subject.update(CpuMeter())
    before = [parameter.clone() for parameter in subject.pair.parameters()]
    exact, fp16, bf16 = (parity(subject, precision, 8) for precision in ("fp32", "fp16", "bf16"))
    assert vars(exact) == {"gradient": 0, "displacement": 0, "update": 0}
    for name in vars(exact):
        assert 0 < getattr(fp16, name) < getattr(bf16, name) < 0.5, name
    for one, other in zip(before, subject.pair.parameters(), strict=True):
        assert one.equal(other)


def test_machine() -> None:
    with pytest.raises(ConfigError, match="expected cpu or cuda, got 'tpu'"):
        device_of("tpu")
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="use --device cpu"):
            device_of("cuda")
    assert json.dumps(describe(CPU))
    peak, what = peak_flops(CPU, torch.float32)
    assert peak is not None and peak > 1e8 and "convolutions in float32" in what


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--chain", "fp8"), "compute.chain_precision: .* got 'fp8'"),
        (("--device", "tpu"), "--device: expected cpu or cuda, got 'tpu'"),
        (("--set", "compute.compile=maybe"), "compute.compile: .* got 'maybe'"),
    ],
)
def test_the_command_refuses_in_one_line(
    arguments: tuple[str, ...], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["cdrl", "bench", "cifar10", *arguments])
    with pytest.raises(SystemExit) as caught:
        main()
    said = capsys.readouterr().err
    assert caught.value.code == 2 and len(said.splitlines()) == 1
    assert re.search(message, said)
