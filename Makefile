# make demo: train on the embedded data set `digits` and evaluate, about ten minutes on two cores
# make mnist_svhn: the MLD paper's table; downloads the data (1.6 GB), wants an accelerator
# make test: the quick tests        make lint: style, types of the mathematics and the one-way imports
# Each makes the virtual environment .venv on first use.

PYTHON := .venv/bin/python
WORKDIR := runs/demo
.DELETE_ON_ERROR:
.PHONY: demo mnist_svhn test lint

demo: .venv/installed
	$(PYTHON) -m experiments.train --config=configs/mld.py:digits --workdir=$(WORKDIR)
	$(PYTHON) -m experiments.evaluate --workdir=$(WORKDIR)

mnist_svhn: .venv/installed
	$(PYTHON) -m experiments.train --config=configs/mld.py:mnist_svhn --workdir=runs/mnist_svhn
	$(PYTHON) -m experiments.evaluate --workdir=runs/mnist_svhn

test: .venv/installed
	$(PYTHON) -m pytest -q -n 2 --dist worksteal -m "not slow"

lint: .venv/installed
	$(PYTHON) -m ruff check .
	$(PYTHON) -m mypy
	.venv/bin/lint-imports

.venv/installed: Makefile pyproject.toml requirements.txt
	python3 -m venv .venv
	$(PYTHON) -m pip install --quiet --requirement requirements.txt
	$(PYTHON) -m pip install --quiet --no-deps --editable .
	touch $@
