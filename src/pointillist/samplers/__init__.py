"""Samplers: walk along a velocity field from the first of `times` to the last.

A field is any function of `(x, t)`; `t` reaches it as a zero-dimensional float64 tensor on the CPU,
which mixes with states of any device and type without a copy back. One that has the pair behind its
velocity, as `field.estimate(x, t)` and `field.path` (`guidance.Field`), is walked on that path; one
with `path` alone has its pair computed from state and velocity; any other function is taken to be
on the straight path, where a sampler has to know. `times` rise or fall strictly; only the samplers
that add noise need them to rise.

`noise(i)` is draw number i, as strong as the path's eps: step i's, as only `langevin` may take more
than one a step. Samplers that are not among `STOCHASTIC` never call it, and no sampler adds noise
that none of its steps takes away. `watch(i, t, x, estimate)` sees every step before it is taken:
the state that is asked about, and the field's own (x, eps) pair or None; it cancels by raising. All
end exactly at `times[-1]`.

Sources: Karras et al. 2206.00364 (Heun with a last Euler step, so do JiT 2511.13720; churn), Lu et
al. 2206.00927 and 2211.01095 (DPM-Solver, DPM-Solver++), Zhao et al. 2302.04867 (UniPC), Ma et al.
2401.08740 (SiT: the stochastic equations), Song et al. 2010.02502 (DDIM), Ho et al. 2006.11239
(DDPM), Song et al. 1907.05600 and 2011.13456 (Langevin, ancestral). `tests/test_samplers.py` and
`tests/test_sampler_orders.py` hold all to known answers.
"""

import functools

from pointillist.samplers.along import ab2, adams_weights, euler, heun, lms
from pointillist.samplers.ancestral import ancestral, dpmpp_2m_sde, dpmpp_2s_ancestral
from pointillist.samplers.churn import heun_churn, langevin
from pointillist.samplers.diffusion import euler_maruyama, stochastic_heun
from pointillist.samplers.picture import dpmpp_2m, dpmpp_2s, unipc
from pointillist.samplers.step import Noise, Sampler, Times, Velocity, Watch
from pointillist.samplers.times import GRIDS, STRAIGHT, time_grid, times_of

__all__ = [
    "GRIDS",
    "SAMPLERS",
    "STOCHASTIC",
    "STRAIGHT",
    "Noise",
    "Sampler",
    "Times",
    "Velocity",
    "Watch",
    "ab2",
    "adams_weights",
    "ancestral",
    "dpmpp_2m",
    "dpmpp_2m_sde",
    "dpmpp_2s",
    "dpmpp_2s_ancestral",
    "euler",
    "euler_maruyama",
    "heun",
    "heun_churn",
    "langevin",
    "lms",
    "stochastic_heun",
    "time_grid",
    "times_of",
    "unipc",
]

SAMPLERS: dict[str, Sampler] = {
    "euler": euler,
    "heun": heun,
    "heun_edm": functools.partial(heun_churn, churn=0.0),  # Heun by sigma/alpha, EDM's Alg. 1
    "ab2": ab2,
    "ab2_even": functools.partial(ab2, even=True),
    "lms": lms,
    "dpmpp_2m": dpmpp_2m,
    "dpmpp_2s": dpmpp_2s,
    "unipc": unipc,
    "ddim": functools.partial(ancestral, eta=0.0),
    "euler_maruyama": euler_maruyama,
    "stochastic_heun": stochastic_heun,
    "ddpm": ancestral,
    "ddpm_large": functools.partial(ancestral, large=True),
    "euler_ancestral": ancestral,  # the same rule, by the name it has on the exploding path
    "dpmpp_2s_ancestral": dpmpp_2s_ancestral,
    "dpmpp_2m_sde": dpmpp_2m_sde,
    "heun_churn": heun_churn,
    "langevin": langevin,
}

STOCHASTIC = (
    "euler_maruyama",
    "stochastic_heun",
    "ddpm",
    "ddpm_large",
    "euler_ancestral",
    "dpmpp_2s_ancestral",
    "dpmpp_2m_sde",
    "heun_churn",
    "langevin",
)
