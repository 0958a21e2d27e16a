"""Training with several processes: finding the peers, and ending when one of them is lost."""

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
  "coordinator", None, "HOST:PORT of process 0, to which all processes connect."
)
_NUM_PROCESSES = setup.define_integer(
  "num_processes",
  None,
  "Number of processes; 1 alone trains in this process only, even under srun or on a TPU pod.",
)
_PROCESS_ID = setup.define_integer("process_id", None, "Index of this process, from 0.")


@contextlib.contextmanager
def joined(peer_timeout: int) -> Iterator[None]:
  """Connects this process to its peers, if there are any; enter it before JAX is used.

  The peers are named by the flags, or else by `srun` or a TPU pod. An error that the other
  processes may not have ends this one at once, with exit code 1, so that they notice it.

  Args:
    peer_timeout: seconds without a heartbeat after which a process counts as dead, and JAX ends
      all others.

  Raises:
    UserError: flags are missing or wrong, the coordinator's port is in use, or `peer_timeout` is
      below 1 s.
  """
  peers = _peers()
  if peers is not None:
    if peer_timeout < 1:
      raise UserError(f"config.monitor.peer_timeout is {peer_timeout}; it must be 1 s or more.")
    limits = {"heartbeat_timeout_seconds": peer_timeout, "shutdown_timeout_seconds": peer_timeout}
    jax.distributed.initialize(**peers, **limits)
  try:
    yield
  except (UserError, PreemptedError, FloatingPointError):
    raise
  except Exception:
    if peers is None:
      raise
    traceback.print_exc()
    print(
      "This process ends with the error above. If it is a failed collective or a closed connection,"
      " another process was lost before: see its output. Run the same commands again to resume from"
      " the last checkpoint.",
      file=sys.stderr,
      flush=True,
    )
    # Python's normal exit waits for the other processes, which may wait for this one.
    os._exit(1)


def _peers() -> dict[str, Any] | None:
  """Returns the arguments that describe the peers to JAX; None if this process is alone."""
  given = {flag.name: flag.value for flag in (_COORDINATOR, _NUM_PROCESSES, _PROCESS_ID)}
  missing = [f"--{name}" for name, value in given.items() if value is None]
  if missing == ["--coordinator", "--process_id"] and _NUM_PROCESSES.value == 1:
    return None
  if len(missing) < len(given):
    if missing:
      raise UserError(
        f"{' and '.join(missing)} must be given, too: several processes need --coordinator,"
        " --num_processes and --process_id, of which only the last differs between them. On a TPU"
        " pod and with Slurm's srun give none of them."
      )
    return _from_flags(**given)
  # The tasks of the job step: a script of `sbatch` is one process, however many tasks its job has.
  tasks = os.environ.get("SLURM_STEP_NUM_TASKS", "1")
  if tasks != "1":
    # JAX assumes one device per task. A task that is alone on its host should use all devices, for
    # which JAX takes an empty list; it would replace None by one device.
    alone = tasks == os.environ.get("SLURM_STEP_NUM_NODES")
    return {"cluster_detection_method": "slurm", "local_device_ids": [] if alone else None}
  return {} if _on_tpu_pod() else None


def _from_flags(coordinator: str, num_processes: int, process_id: int) -> dict[str, Any]:
  port = re.fullmatch(r".+:(\d{1,5})", coordinator)
  if not port:
    raise UserError(
      f"--coordinator is {coordinator!r}; it must be HOST:PORT, a host that all processes can"
      " reach and a free port on it, such as 10.0.0.1:1234."
    )
  if not 0 <= process_id < num_processes:
    raise UserError(
      f"--process_id is {process_id} of --num_processes={num_processes}; it must be at least 0"
      " and below --num_processes."
    )
  if process_id == 0:
    try:
      socket.create_server(("", int(port[1]))).close()
    except (OSError, OverflowError) as error:
      raise UserError(
        f"Process 0 cannot listen on the port of --coordinator={coordinator} ({error}). End"
        " the process that uses it, perhaps an earlier run, or give all processes another port."
      ) from error
  return {
    "coordinator_address": coordinator,
    "num_processes": num_processes,
    "process_id": process_id,
    "cluster_detection_method": "deactivate",
  }


def _on_tpu_pod() -> bool:
  """Returns whether JAX has TPUs here that may belong to several hosts."""
  # Unless the user has set it, JAX adds the TPU here if there is one.
  if "tpu" not in (jax.config.jax_platforms or ""):
    return False
  if os.environ.get("MEGASCALE_NUM_SLICES", "1") != "1":
    return True
  hosts = os.environ.get("TPU_PROCESS_ADDRESSES", os.environ.get("TPU_WORKER_HOSTNAMES"))
  if hosts is not None:
    return "," in hosts
  # Otherwise JAX reads it from the machine's metadata.
  return "TPU_SKIP_MDS_QUERY" not in os.environ
