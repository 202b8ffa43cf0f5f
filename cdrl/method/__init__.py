r"""The book: diffusion recovery likelihood and its cooperative successor, in torch and nothing else.

Read it in this order:

1. `schedule`     the noise levels and every constant of a transition t -> s = t-1
2. `nets`         the energy net f and the initializer g, which see the data and logSNR, never an index
3. `pairs`        one Pair of nets for all levels, one for each, or anything in between
4. `langevin`     log p(y | x_t) and the short chain that samples it
5. `formulation`  f of one batch; `guidance`: one weighted sum of it over labels
6. `cooperative`  one training update: the chain teaches the initializer, the energy contrasts data with samples
7. `sampling`     from noise to image, level by level; `inpainting` holds known pixels on the way, `trace` keeps it

What a trained ladder is asked: `likelihood` and `hmc` (the normalizer by annealing, corrected chains), `chains` (long
runs), `ood` (what is far from the data). `fast` is the same mathematics once more, for speed.

Everything runs in the *scaled space* of the cleaner side, y = scale * x_s, in which x_t = y + sigma_ts * eps.
A net's output f is a log-density up to a constant and a known factor: log p(y) = f(y) / step_size + const.

References:
    Gao, Song, Poole, Wu, Kingma: Learning Energy-Based Models by Diffusion Recovery Likelihood (ICLR 2021).
    Zhu, Xie, Wu, Gao: Learning Energy-Based Models by Cooperative Diffusion Recovery Likelihood (ICLR 2024).
"""
