"""Training by several processes: how they find one another, and how they end when one is lost."""

from collections.abc import Iterator
import contextlib
import os
import re
import socket
import sys
import traceback
from typing import Any

from absl import flags
import jax

from experiments import setup
from mmdiff_jax.errors import PreemptedError, UserError

_COORDINATOR = flags.DEFINE_string(
  "coordinator", None, "HOST:PORT of process 0, where several processes find one another."
)
_NUM_PROCESSES = setup.define_integer(
  "num_processes",
  None,
  "How many train together; 1 by itself is this one alone, whatever srun or a TPU pod says.",
)
_PROCESS_ID = setup.define_integer("process_id", None, "Which of them this one is, from 0.")


@contextlib.contextmanager
def joined(peer_timeout: int) -> Iterator[None]:
  """Has this process train with its peers, if there are any; to be entered before JAX is used.

  The flags say who they are, or else what `srun` or a TPU pod tells. An error that the others may
  not have ends the process at once, with exit code 1, so that they notice it.

  Args:
    peer_timeout: seconds without a sign of life after which a process is taken for dead, and JAX
      ends all others.

  Raises:
    UserError: flags are missing or wrong, the coordinator's port is taken, or there is no time.
  """
  found = _found()
  if found is not None:
    if peer_timeout < 1:
      raise UserError(f"config.monitor.peer_timeout is {peer_timeout}; it must be 1 s or more.")
    limits = {"heartbeat_timeout_seconds": peer_timeout, "shutdown_timeout_seconds": peer_timeout}
    jax.distributed.initialize(**found, **limits)
  try:
    yield
  except (UserError, PreemptedError, FloatingPointError):
    raise
  except Exception:
    if found is None:
      raise
    traceback.print_exc()
    print(
      "This process ends by the error above. If that is a collective that failed or a connection"
      " that was closed, another process was lost before: see what it says. Start the same commands"
      " again: they go on from the last checkpoint.",
      file=sys.stderr,
      flush=True,
    )
    # Python's own way out waits for the others, which may wait for this one.
    os._exit(1)


def _found() -> dict[str, Any] | None:
  """What to tell JAX of the peers; None if this process is alone."""
  given = {flag.name: flag.value for flag in (_COORDINATOR, _NUM_PROCESSES, _PROCESS_ID)}
  missing = [f"--{name}" for name, value in given.items() if value is None]
  if missing == ["--coordinator", "--process_id"] and _NUM_PROCESSES.value == 1:
    return None
  if len(missing) < len(given):
    if missing:
      raise UserError(
        f"{' and '.join(missing)} must be given, too: several processes are told by --coordinator,"
        " --num_processes and --process_id, of which the last alone differs between them. On a TPU"
        " pod and with Slurm's srun give none of them."
      )
    return _as_told(**given)
  # Of a job step: a script of `sbatch` is one process, however many tasks its job has.
  tasks = os.environ.get("SLURM_STEP_NUM_TASKS", "1")
  if tasks != "1":
    # JAX takes a task for one of one device. Where it has its host for itself all are meant, which
    # is what an empty list does; None would be replaced by one.
    alone = tasks == os.environ.get("SLURM_STEP_NUM_NODES")
    return {"cluster_detection_method": "slurm", "local_device_ids": [] if alone else None}
  return {} if _on_tpu_pod() else None


def _as_told(coordinator: str, num_processes: int, process_id: int) -> dict[str, Any]:
  port = re.fullmatch(r".+:(\d{1,5})", coordinator)
  if not port:
    raise UserError(
      f"--coordinator is {coordinator!r}; it must be HOST:PORT, a host that all processes reach and"
      " a free port of it, such as 10.0.0.1:1234."
    )
  if not 0 <= process_id < num_processes:
    raise UserError(
      f"--process_id is {process_id} of --num_processes={num_processes}; it must be 0 or more and"
      " below that."
    )
  if process_id == 0:
    try:
      socket.create_server(("", int(port[1]))).close()
    except (OSError, OverflowError) as error:
      raise UserError(
        f"Process 0 cannot listen on the port of --coordinator={coordinator} ({error}). End what"
        " does, perhaps an earlier run, or give all processes another port."
      ) from error
  return {
    "coordinator_address": coordinator,
    "num_processes": num_processes,
    "process_id": process_id,
    "cluster_detection_method": "deactivate",
  }


def _on_tpu_pod() -> bool:
  """Whether JAX has TPUs here, and they may belong to several hosts."""
  # Without a choice of the user's, JAX enters the TPU here where it finds one.
  if "tpu" not in (jax.config.jax_platforms or ""):
    return False
  if os.environ.get("MEGASCALE_NUM_SLICES", "1") != "1":
    return True
  hosts = os.environ.get("TPU_PROCESS_ADDRESSES", os.environ.get("TPU_WORKER_HOSTNAMES"))
  if hosts is not None:
    return "," in hosts
  # Else the machine's metadata say it, which JAX reads.
  return "TPU_SKIP_MDS_QUERY" not in os.environ
