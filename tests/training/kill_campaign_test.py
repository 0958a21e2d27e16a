import importlib.util
import pathlib

import pytest

SCRIPT = pathlib.Path(__file__).with_name("kill_campaign.py")


@pytest.mark.slow
def test_killed_trainings_of_the_command_line_equal_an_uninterrupted_one(tmp_path):
  """Three kills; `kill_campaign.py` by itself also trains CoDi, and kills more often."""
  spec = importlib.util.spec_from_file_location("kill_campaign", SCRIPT)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  assert module.campaign("mld", 3, 0, tmp_path).total() == 3
