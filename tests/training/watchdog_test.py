import subprocess
import sys
import textwrap

CODE = """
  import time
  from mmdiff_jax.training.watchdog import Watchdog

  def wait_forever():
    time.sleep(100)

  stopped, watchdog = Watchdog(0.1), Watchdog(2.0)
  stopped.start()
  stopped.stop()
  watchdog.start()
  for _ in range(6):
    time.sleep(0.5)
    watchdog.alive()
  print("still here", flush=True)
  wait_forever()
"""


def test_ends_a_process_without_progress():
  command = [sys.executable, "-c", textwrap.dedent(CODE)]
  ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
  assert ended.returncode == 1
  assert ended.stdout == "still here\n"
  assert "in wait_forever" in ended.stderr
  assert "Nothing was finished for 2 s" in ended.stderr
