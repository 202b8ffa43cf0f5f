"""The annealing at a glance: where the forward and the backward run part, and how well HMC moved."""

import io

import torch
from PIL import Image

from cdrl.evaluation.likelihood import Likelihood

__all__ = ["likelihood_plot"]


def likelihood_plot(result: Likelihood) -> Image.Image:
    """log Z along the path, what the bracket gains at each temperature, the weights of the chains, HMC."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    card, path = result.card, result.path
    runs = {"forward": (result.forward, "tab:blue"), "backward": (result.backward, "tab:orange")}
    figure = Figure(figsize=(17, 4.4), layout="constrained")
    along, opening, weights, moves = figure.subplots(1, 4)
    share = torch.linspace(0, 1, len(path.kappa) - 1)
    for name, (run, colour) in runs.items():
        sums = run.work.cumsum(dim=0)
        along.plot(share, sums, color=colour, alpha=0.08, linewidth=0.7)
        along.plot(share, sums.mean(dim=1), color=colour, label=name)
        log_w = run.work.sum(dim=0)
        weights.hist(log_w.numpy(), bins=30, color=colour, alpha=0.6, label=f"{name}: {run.nats:,.2f}")
        weights.axvline(run.nats, color=colour, linestyle="--")
        moves.plot(share[1:], run.acceptance, color=colour, alpha=0.7, label=f"acceptance, {name}")
    gap = (result.backward.work - result.forward.work.mean(dim=1, keepdim=True)).mean(dim=1).cumsum(dim=0)
    opening.plot(share, gap, color="black")
    opening.axhline(0, color="gray", linewidth=0.7)
    moves.plot(share, path.step_size[1:] / path.step_size.max(), color="gray", label="step size / its largest")
    along.set(title="mean log weight so far: log Z of the path, nats", xlabel="share of the temperatures")
    opening.set(title="backward less forward so far, nats", xlabel="share of the temperatures")
    weights.set(title="log weights of the chains; dashed: log Z, nats", ylabel="chains")
    moves.set(title="HMC", xlabel="share of the temperatures", ylim=(-0.03, 1.03))
    at = [0, len(share) // 4, len(share) // 2, 3 * len(share) // 4, len(share) - 1]
    for axes in (along, opening, moves):
        axes.set_xticks(share[at], [f"{share[i]:.2f}\nκ={path.kappa[i + 1]:.2g}" for i in at], fontsize=8)
    for axes in (along, weights, moves):
        axes.legend(fontsize=8)
    what = f"level {card.level}" + (f", class {card.label}" if card.label else "")
    figure.suptitle(f"{what}: {card.num_chains} chains over {card.num_temperatures} temperatures")
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    return Image.open(buffer).convert("RGB")
