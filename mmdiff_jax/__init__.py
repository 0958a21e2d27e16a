"""mmdiff_jax: joint and any-to-any generation of several modalities by diffusion, in JAX.

Data is a dict of modalities, time is a dict of times, and a sample is the end of a path through
multi-time. `schedules`, `prediction`, `multitime`, `solvers` and `guidance` are the mathematics and
need nothing but JAX; `frameworks` put them to work.
"""

__version__ = "0.2.0"
