r"""The same mathematics for speed: `Fast` is a `Formulation` that agrees with `Plain` in float64 to rounding.

What differs, each in one place and each a switch:

    weights     one normalisation, folding and level projection for a whole chain and both losses (weights.py)
    gradient    written by hand, so that it is no autograd graph, compiles and captures (network.py)
    graph       a step of a chain as one CUDA graph, replayed K times (graph.py)
    precision   of the chain, of the losses and of the initializer (precision.py); spectral norms, f's embedding, the
                sum over features, the chain's state, optimizer and average always stay in float32
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from torch import Tensor, nn

from cdrl.method.fast import network
from cdrl.method.fast.energy import FastEnergy, Network
from cdrl.method.fast.graph import GraphedChain
from cdrl.method.fast.precision import Precision, dtype_of, fp32_kernels
from cdrl.method.fast.tensors import map_tensors
from cdrl.method.fast.weights import EnergyWeights, Folded, fold
from cdrl.method.formulation import Prepared
from cdrl.method.langevin import Chain, langevin
from cdrl.method.nets import EnergyNet

__all__ = ["Fast", "Precision"]

MAX_SHAPES = 32


@dataclass(frozen=True, eq=False)
class Fast:
    """The fast formulation.

    Args:
        chain_precision: of the convolutions of a chain's gradient.
        loss_precision: of those of the positive and negative passes.
        initializer_precision: of the initializer's; fp16 is not offered, since its loss is a sum over pixels.
        compile: compile value and gradient, once for each shape.
        graph: capture chains as CUDA graphs.
        channels_last: memory format of convolution weights, which their results take over.
        fold_pooling: average pooling before the convolution that it follows, which then has a quarter of the places.
        device_type: where it runs, cpu or cuda.
    """

    chain_precision: Precision = "fp32"
    loss_precision: Precision = "fp32"
    initializer_precision: Precision = "fp32"
    compile: bool = False
    graph: bool = False
    channels_last: bool = True
    fold_pooling: bool = True
    device_type: str = "cpu"

    @property
    def loss_scale(self) -> float:
        """Lifts small gradients into the range of fp16 with room above; a power of two, so exact elsewhere."""
        return 16.0 if self.loss_precision == "fp16" else 1.0

    @cached_property
    def value(self) -> Network:
        """f over prepared weights."""
        return _compiled(network.value) if self.compile else network.value

    @cached_property
    def gradient(self) -> Network:
        """grad f over prepared weights."""
        return _compiled(network.gradient) if self.compile else network.gradient

    @cached_property
    def chain(self) -> Chain:
        """Langevin's loop."""
        return GraphedChain() if self.graph else langevin

    def prepare(self, net: nn.Module) -> Prepared:
        """Normalise and fold the weights of an energy net, once.

        Raises:
            TypeError: another kind of net; the plain formulation takes any.
        """
        if not isinstance(net, EnergyNet):
            raise TypeError(f"the fast formulation is that of EnergyNet, got {type(net).__name__}")
        return partial(self._at, fold(net, fold_pooling=self.fold_pooling, channels_last=self.channels_last))

    def _at(self, folded: Folded, logsnr: Tensor, label: Tensor | None) -> FastEnergy:
        return FastEnergy(folded.at(logsnr, label), folded.net.patch, self)

    @contextmanager
    def initializer(self, *, backward: bool = False) -> Iterator[None]:
        """The precision in which the initializer runs."""
        dtype = None if backward else dtype_of(self.initializer_precision)  # backward ops follow the forward's
        rounded = nullcontext() if dtype is None else torch.autocast(self.device_type, dtype)
        with fp32_kernels(self.initializer_precision), rounded:
            yield

    def cast(self, weights: EnergyWeights, precision: Precision) -> EnergyWeights:
        """Weights in the format of a pass; the head's stay, since features are summed and weighed in float32."""
        dtype = dtype_of(precision)
        if dtype is None:
            return weights
        return map_tensors(weights, lambda weight: weight.to(dtype))._replace(top=weights.top)


def _compiled(function: Network) -> Network:
    """Compiled once for each shape; a process that meets more shapes than torch keeps runs the rest as written."""
    from torch._dynamo.exc import FailOnRecompileLimitHit  # here: the compiler takes two seconds to import

    compiled: Network = torch.compile(function, dynamic=False, fullgraph=True)

    def run(y: Tensor, weights: EnergyWeights, patch: int) -> Tensor:
        try:
            # training, sampling, guidance and what is left at the end of each: torch's own limit is 8
            with torch._dynamo.config.patch(recompile_limit=MAX_SHAPES):
                return compiled(y, weights, patch)
        except FailOnRecompileLimitHit:
            return function(y, weights, patch)

    return run
