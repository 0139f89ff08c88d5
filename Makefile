# make demo       train on synthetic tissue and print a table of test metrics
# make test       run all tests
# make campaigns  attack the whole with faults and hostile input, for an hour or two
# make bench      measure speed and memory beside the notebook's (make bench BENCH=quick: some minutes)
# make coverage   run all tests and tell which lines and branches they leave out
# make mutants    spoil split, index, metrics and bootstrap in 1,400 ways, which tests should notice
# make lint       ruff and the strict type checker
# Each makes .venv on first use and again only when pyproject.toml or constraints.txt change.

VENV := .venv
INSTALLED := $(VENV)/.installed

# The first interpreter of a supported version; override with PYTHON=/path/to/python3.12.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null \
	&& echo $$p && break; done)

# What is measured; see benchmarks/README.md.
BENCH ?= full

.PHONY: demo test campaigns coverage mutants bench lint clean

demo: $(INSTALLED)
	$(VENV)/bin/idc-train

# Tests compute little, so that a thread for each process is quicker than all for one.
# One worker takes a file, and the longest files come first.
PYTEST := OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest --numprocesses auto --dist loadfile \
	--no-loadscope-reorder

test: $(INSTALLED)
	$(PYTEST)

coverage: $(INSTALLED)
	$(PYTEST) --cov

campaigns: $(INSTALLED)
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -m campaign tests/campaigns

mutants: $(INSTALLED)
	OMP_NUM_THREADS=1 $(VENV)/bin/mutmut run
	$(VENV)/bin/mutmut results

bench: $(INSTALLED)
	$(VENV)/bin/python -m benchmarks.run $(BENCH)

lint: $(INSTALLED)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

clean:
	rm -rf $(VENV) mutants .mypy_cache .pytest_cache .ruff_cache build dist

$(INSTALLED): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "Python 3.11, 3.12 or 3.13 is needed: install one, or name it by make PYTHON=..."; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $@
