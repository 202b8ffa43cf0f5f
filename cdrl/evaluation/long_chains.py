r"""Long chains at the noise levels of a model, from where its sampler starts them (spec section 8.5).

A held-out image is noised to x_t, the initializer proposes y, and one chain runs in each of

    conditional    p(y | x_t), x_t held fixed: what the sampler runs for K steps
    marginal       p(y): the same without the pull towards x_t; at the top level there is nothing else

all levels of a pair in one batch. Acceptance is that of a Metropolis test at the step size of training.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from cdrl.errors import ConfigError
from cdrl.evaluation.held_out import held_out
from cdrl.evaluation.likelihood import check_levels, counter
from cdrl.method.chains import LongRun, long_run
from cdrl.method.formulation import Formulation
from cdrl.method.guidance import Condition
from cdrl.method.hmc import value_and_score
from cdrl.method.langevin import RecoveryTarget
from cdrl.method.rng import Rng
from cdrl.model import Model

__all__ = ["ChainCard", "ChainRow", "Chains", "Kind", "LevelChains", "run_chains"]

Kind = Literal["conditional", "marginal"]
Progress = Callable[[str, int, int], None]


class ChainRow(BaseModel):
    """One level of one kind.

    Attributes:
        logsnr: of x_s.
        step_size: squared noise scale of a step.
        acceptance_short: mean Metropolis acceptance of the first K steps, K = `num_short` of the card; None at K = 0.
        acceptance: the same of all steps.
        acceptance_last: the same of the last tenth.
        change_nats: mean log-density at the end less that at the start.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Kind
    level: int
    logsnr: float
    step_size: float
    acceptance_short: float | None
    acceptance: float
    acceptance_last: float
    change_nats: float


class ChainCard(BaseModel):
    """The figures, and what they depend on."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    model_digest: str
    step: int
    manifest_digest: str
    split: str
    num_chains: int
    num_steps: int
    num_short: int
    adjusted: bool
    seed: int
    rows: tuple[ChainRow, ...]


@dataclass(frozen=True)
class LevelChains:
    """The chains of one row.

    Attributes:
        x_t: (B, *shape), what they started from.
        shown: steps of the snapshots.
        snapshots: (S, B, *shape) x_s = y / scale.
        log_prob: (num_steps + 1, B), nats relative to the start.
        acceptance: (num_steps, B).
    """

    row: ChainRow
    x_t: Tensor
    shown: tuple[int, ...]
    snapshots: Tensor
    log_prob: Tensor
    acceptance: Tensor


@dataclass(frozen=True)
class Chains:
    """A card, the held-out data (B, *shape) behind it, and its chains."""

    card: ChainCard
    x_0: Tensor
    levels: tuple[LevelChains, ...]


@torch.no_grad()
def run_chains(
    model: Model,
    *,
    levels: Sequence[int] | None = None,
    kinds: Sequence[Kind] = ("conditional", "marginal"),
    num_steps: int = 100_000,
    num_chains: int = 4,
    adjusted: bool = False,
    uri: str | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Chains:
    """Run long chains; a conditional model is given the classes of the data that they start from.

    Args:
        levels: default: all; the top level has no conditional, and is left out of that kind.
        num_chains: at each level, of as many held-out images.
        adjusted: MALA in place of unadjusted Langevin.
        uri: where the model's dataset is; default: where it was when the model was trained.
        progress: called with (what is done, steps done, steps in all).

    Raises:
        ConfigError: no such level, a conditional at the top level alone, no steps, a dataset that is not the model's,
            or a density that is not finite.
        DataError, StorageError: the dataset is missing or damaged.
    """
    report = progress or (lambda what, done, total: None)
    asked = range(model.schedule.num_levels) if levels is None else sorted(set(levels))
    check_levels(model, *asked)
    top = model.schedule.num_levels - 1
    if "marginal" not in kinds and set(asked) == {top}:
        raise ConfigError(f"level {top}: the top level has no conditional; take --kind marginal")
    data = held_out(model, uri, num_chains)
    x_0, found = data.x.to(model.device), []
    for kind in kinds:
        here = [level for level in asked if kind == "marginal" or level < top]
        for group in model.ladder.groups:
            if mine := [level for level in group if level in here]:
                label = data.label if model.config.data.num_classes else None
                batch = _Batch(model, x_0, label, mine, kind, Rng(seed, "chain", kind, mine[0], device=model.device))
                counted = counter(report, f"{kind}, level {', '.join(map(str, mine))}", num_steps)
                run = batch.run(model.exact, num_steps, adjusted, counted)
                found += batch.by_level(run, model.config.training.num_steps)
    found.sort(key=lambda chains: (chains.row.kind, chains.row.level))
    card = ChainCard(
        model_digest=model.digest,
        step=model.step,
        manifest_digest=model.manifest_digest,
        split=data.split,
        num_chains=len(x_0),
        num_steps=num_steps,
        num_short=model.config.training.num_steps,
        adjusted=adjusted,
        seed=seed,
        rows=tuple(chains.row for chains in found),
    )
    return Chains(card, data.x, tuple(found))


class _Batch:
    """Chains of one kind at several levels of one pair: level after level, each with the same images."""

    def __init__(
        self, model: Model, x_0: Tensor, label: Tensor | None, levels: list[int], kind: Kind, rng: Rng
    ) -> None:
        self.levels, self.kind, self.rng, self.num_chains = levels, kind, rng, len(x_0)
        self.pair = model.ladder[levels[0]]
        repeated = x_0.repeat(len(levels), *[1] * (x_0.ndim - 1))
        of_row = torch.tensor(levels, device=x_0.device).repeat_interleave(len(x_0))
        self.tr = model.schedule.transition(of_row, repeated)
        self.x_t = self.tr.alpha_t * repeated + self.tr.sigma_t * rng.normal(repeated)
        self.condition = Condition.guided(None if label is None else label.to(x_0.device).repeat(len(levels)))

    def run(self, formulation: Formulation, num_steps: int, adjusted: bool, progress: Callable[[], None]) -> LongRun:
        f = self.condition.energy(formulation.prepare(self.pair.energy), self.tr.logsnr_s)
        x_t = self.x_t if self.kind == "conditional" else None
        target = RecoveryTarget(f, self.tr, x_t, self.pair.base_measure, f.gradient)
        _, y = self.pair.propose(self.x_t, self.tr, self.condition, self.rng)
        return long_run(
            partial(value_and_score, target),
            y,
            step_size=self.tr.step_size,
            num_steps=num_steps,
            rng=self.rng,
            adjusted=adjusted,
            progress=progress,
        )

    def by_level(self, run: LongRun, num_short: int) -> list[LevelChains]:
        tr, found = self.tr, []
        snapshots = run.snapshots / tr.scale.cpu()
        last = max(1, len(run.acceptance) // 10)
        for number, level in enumerate(self.levels):
            part = slice(number * self.num_chains, (number + 1) * self.num_chains)
            acceptance, log_prob = run.acceptance[:, part], run.log_prob[:, part]
            row = ChainRow(
                kind=self.kind,
                level=level,
                logsnr=tr.logsnr_s[part][0].item(),
                step_size=tr.step_size[part][0].item(),
                acceptance_short=acceptance[:num_short].mean().item() if num_short else None,
                acceptance=acceptance.mean().item(),
                acceptance_last=acceptance[-last:].mean().item(),
                change_nats=log_prob[-1].mean().item(),
            )
            x_t = self.x_t[part].cpu()
            found.append(LevelChains(row, x_t, run.shown, snapshots[:, part], log_prob, acceptance))
        return found
