import pytest

from mmdiff_jax.data import digits


@pytest.fixture(scope="session")
def few_draws(tmp_path_factory):
  """`digits` with two draws of each training handwriting and one of each test handwriting."""
  drawn = digits.Drawn(train=2, test=1)
  folder = str(tmp_path_factory.mktemp("prepared"))
  builder = digits.Digits(data_dir=folder, config=drawn, file_format="array_record")
  builder.download_and_prepare()
  return builder
