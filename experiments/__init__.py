"""Entry points, run from a checkout: `python -m experiments.NAME`."""

import sys

# `python -m` imports this package first; the imports of the module itself take seconds.
if sys.argv[0] == "-m":
  print("mmdiff_jax: loading", flush=True)
