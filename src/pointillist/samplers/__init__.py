"""Samplers: walk along a velocity field from the first of `times` to the last.

A field is any function of `(x, t)`; `t` reaches it as a zero-dimensional float64 tensor on the CPU,
which mixes with states of any device and type without a copy back. One that has the pair behind its
velocity, as `field.estimate(x, t)` and `field.path` (`guidance.Field`), is walked on that path; one
with `path` alone has its pair computed from state and velocity; any other function is taken to be
on the straight path, where a sampler has to know. `times` rise or fall strictly; only the samplers
that add noise need them to rise.

`noise(i)` is the noise that step i adds, as strong as the path's eps; samplers that follow the
velocity alone never call it. `watch(i, t, x, estimate)` sees every step before it is taken: the
state that is asked about, and the field's own (x, eps) pair or None; it cancels by raising. All end
exactly at `times[-1]`.

Sources: Karras et al. 2206.00364 (Heun with a last Euler step, so do JiT 2511.13720), Lu et al.
2206.00927 and 2211.01095 (DPM-Solver, DPM-Solver++), Zhao et al. 2302.04867 (UniPC), Ma et al.
2401.08740 (SiT: the stochastic equations). `tests/test_samplers.py` holds all to known answers.
"""

import functools

from pointillist.samplers.along import ab2, adams_weights, euler, heun, lms
from pointillist.samplers.diffusion import euler_maruyama, stochastic_heun
from pointillist.samplers.picture import dpmpp_2m, dpmpp_2s, unipc
from pointillist.samplers.step import Noise, Sampler, Times, Velocity, Watch
from pointillist.samplers.times import GRIDS, time_grid, times_of

__all__ = [
    "GRIDS",
    "SAMPLERS",
    "STOCHASTIC",
    "Noise",
    "Sampler",
    "Times",
    "Velocity",
    "Watch",
    "ab2",
    "adams_weights",
    "dpmpp_2m",
    "dpmpp_2s",
    "euler",
    "euler_maruyama",
    "heun",
    "lms",
    "stochastic_heun",
    "time_grid",
    "times_of",
    "unipc",
]

STOCHASTIC = ("euler_maruyama", "stochastic_heun")

SAMPLERS: dict[str, Sampler] = {
    "euler": euler,
    "heun": heun,
    "ab2": ab2,
    "ab2_even": functools.partial(ab2, even=True),
    "lms": lms,
    "dpmpp_2m": dpmpp_2m,
    "dpmpp_2s": dpmpp_2s,
    "unipc": unipc,
    "euler_maruyama": euler_maruyama,
    "stochastic_heun": stochastic_heun,
}
