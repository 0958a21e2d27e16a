import importlib.util
import pathlib

import pytest

SCRIPT = pathlib.Path(__file__).with_name("kill_campaign.py")


@pytest.mark.slow
def test_killed_trainings_of_the_command_line_end_as_one_left_alone(tmp_path):
  """Of three; `kill_campaign.py` by itself takes CoDi, too, and kills more often."""
  spec = importlib.util.spec_from_file_location("kill_campaign", SCRIPT)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  assert module.campaign("mld", 3, 0, tmp_path).total() == 3
