"""How the rest of the library reads schedules: one for all, or one for each modality."""

from collections.abc import Iterable, Mapping
from typing import Any

from jaxtyping import Array, Shaped

from mmdiff_jax import arguments
from mmdiff_jax.schedules.continuous import RectifiedFlow, SubVP, VE, VPCosine, VPLinear
from mmdiff_jax.schedules.table import Table

Schedule = VPLinear | SubVP | VE | VPCosine | RectifiedFlow | Table


def schedule_of(schedule: Schedule | Mapping[str, Schedule], name: str) -> Schedule:
  """Returns the schedule of a modality: the only one, or its entry in a dict of schedules.

  Raises:
    ValueError: the dict has no entry for `name`.
  """
  if not isinstance(schedule, Mapping):
    return schedule
  if name not in schedule:
    raise ValueError(
      f"schedule has none for modality {name!r}: {arguments.nearest(name, schedule)}. Add one."
    )
  return schedule[name]


def check(where: str, schedule: Any, names: Iterable[str] = (), *, one: bool = False) -> Any:
  """Checks that something is a schedule, or a dict of schedules with one for each of `names`.

  A user-defined schedule also serves if it has the methods of those above that are used.

  Args:
    where: the function, for the message.
    schedule: the object to check.
    names: modalities that need a schedule.
    one: whether it must be a single schedule, not a dict.

  Returns:
    The schedule; any mapping as a dict, which is a pytree.

  Raises:
    TypeError: it is not a schedule, but such as the name of one or a class that was not called.
    ValueError: a modality has no schedule.
  """
  several = isinstance(schedule, Mapping) and not one
  for name, value in schedule.items() if several else ((None, schedule),):
    if isinstance(value, type) or not all(
      callable(getattr(value, method, None)) for method in ("alpha", "sigma")
    ):
      argument = "schedule" if name is None else f"schedule[{name!r}]"
      raise TypeError(
        f"{where}: {argument}={value!r} must be a schedule, such as schedules.VPCosine(), or a dict"
        " with one for each modality."
      )
  if not several:
    return schedule
  for name in names:
    if name not in schedule:
      raise ValueError(
        f"{where}: schedule has none for modality {name!r}: {arguments.nearest(name, schedule)}."
        " Add one."
      )
  return dict(schedule)


def check_t_min(where: str, schedule: Any, t_min: Any) -> None:
  """Checks that a time lies inside (0, t_max), where log_snr is finite.

  Args:
    where: the function, for the message.
    schedule: one schedule.
    t_min: the time to check.

  Raises:
    TypeError: `schedule` is not a schedule, or `t_min` not a number.
    ValueError: `t_min` is outside (0, t_max).
  """
  check(where, schedule, one=True)
  arguments.scalar(where, "t_min", t_min)
  if not 0 < t_min < schedule.t_max:
    raise ValueError(
      f"{where}: t_min={t_min} must be above 0, where log_snr is infinite, and below the schedule's"
      f" t_max, {schedule.t_max}."
    )


def along(t: Shaped[Array, "*rows"], x: Shaped[Array, "..."]) -> Shaped[Array, "..."]:
  """Adds axes of size 1 to a time (or a function of it), scalar or one a row, to multiply `x`."""
  return t if t.ndim == 0 else t.reshape(t.shape + (1,) * (x.ndim - t.ndim))
