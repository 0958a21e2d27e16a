"""Entry points, run from a checkout: `python -m experiments.NAME`."""

import sys

# `python -m` imports this first, and the module's own imports take seconds.
if sys.argv[0] == "-m":
  print("mmdiff_jax: loading", flush=True)
