"""Shared by the frameworks that diffuse images by a table of DDPM with a U-Net."""

from collections.abc import Callable
from typing import Any

from mmdiff_jax import config_checks, schedules
from mmdiff_jax.errors import UserError

# Checks of `config.network` where it is a U-Net.
UNET = {
  "width": config_checks.SIZE,
  "multipliers": config_checks.tuple_of(config_checks.integer(most=1000), 1),
  "blocks": config_checks.integer(1, 1000),
  "attention": config_checks.tuple_of(config_checks.SIZE),
  "head_channels": config_checks.SIZE,
  "text_width": config_checks.SIZE,
  "dropout": config_checks.FRACTION,
  "patch": config_checks.SIZE,
  "remat": config_checks.FLAG,
  "dtype": config_checks.DTYPE,
}


def initialise(init: Callable[..., Any], *args: Any, **options: Any) -> dict[str, Any]:
  """Returns the entry `network`, initialised; arguments after the first are those of `init`.

  Raises:
    UserError: the network cannot have these sizes.
  """
  try:
    return {"network": init(*args, **options)}
  except ValueError as error:
    raise UserError(f"config.network: {error}") from error


def make_table(process: Any) -> schedules.Table:
  """Returns the table that `process.betas`, linear or cosine, and `process.num` describe.

  Raises:
    UserError: unknown betas, or invalid ones.
  """
  makers = {"linear": schedules.betas_linear, "cosine": schedules.betas_cosine}
  if process.betas not in makers:
    raise UserError(f"config.process.betas is {process.betas!r}; it can be {', '.join(makers)}.")
  config_checks.check(process, {"num": config_checks.integer(most=100_000)}, "process.")
  try:
    return schedules.Table(makers[process.betas](process.num))
  except ValueError as error:
    raise UserError(f"config.process: {error}") from error
