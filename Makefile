# cnn-research from a fresh clone. Every target makes the environment it needs; GNU make 3.81 and a POSIX shell are enough.

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
# Two installations into one environment at the same time would break it.
.NOTPARALLEL:

# PYTHON=... chooses the Python of new environments (`make clean` removes existing ones). Else the newest that works is taken.
PYTHON ?=
PYTHONS := 3.13 3.12 3.11
# The oldest dependencies want the oldest Python: not every one of them need have wheels for the newest.
OLDEST_PYTHON ?=
OLDEST_PYTHONS := 3.11 3.12 3.13
# PyTorch's CPU build may exist for one Python only, and its other builds bring gigabytes.
PARITY_PYTHON ?=
PARITY_PYTHONS := 3.11 3.12 3.13
# The torchvision that belongs to the torch of the parity extra. Without its dependencies: they would ask for a torch of their own.
TORCHVISION = torchvision==0.28.0
# Appended to the command line of the training script or of pytest.
ARGS =
# Reports for test-browser to look at.
REPORTS =
# What the other test targets run stays out.
QUICK = not slow and not zoo and not smoke and not full and not parity and not notebook and not browser and not docs and not wheel
# Most tests wait for one core: two processes are nearly twice as fast on two. A file's tests stay together, with what they share.
PARALLEL = -n 2 --dist loadfile --no-loadscope-reorder
CONFIG = experiments/configs/lenet5_digits.py
WORKDIR = runs/$(basename $(notdir $(CONFIG)))

# Arguments: environment, a chosen Python or nothing, versions to look for in order of preference, then what pip shall install.
define INSTALL
set -eu
environment=$$1 chosen=$$2 versions=$$3; shift 3

# A command named python3.13 may be a version manager's shim that starts nothing, or may lack what some distributions package
# separately, so each candidate has to show that it is what its name says and that it can make environments.
works() {
  candidate=$$1; shift
  "$$candidate" -c 'import sys, ssl, venv, ensurepip; sys.exit("%d.%d" % sys.version_info[:2] not in sys.argv[1:])' "$$@" >/dev/null 2>&1
}
find_python() {
  if [ -n "$$chosen" ]; then
    works "$$chosen" $$versions && echo "$$chosen"
    return
  fi
  for version in $$versions; do
    for python in python$$version "$${PYENV_ROOT:-$${HOME:-}/.pyenv}/versions/$$version."*/bin/python$$version; do
      works "$$python" $$version && echo "$$python" && return
    done
  done
  works python3 $$versions && echo python3
}

if [ "$$(cat "$$environment/made-in" 2>/dev/null)" != "$(CURDIR)" ] || ! "$$environment/bin/python" -c 'import pip' 2>/dev/null; then
  if ! python=$$(find_python); then
    echo "No usable Python$${chosen:+: $$chosen is not one}. cnn-research needs Python 3.11, 3.12 or 3.13 with its venv, ensurepip and ssl modules." >&2
    echo "Install one, for example: apt install python3.12-venv, brew install python@3.13, or pyenv install 3.13." >&2
    echo "Or say where yours is: PYTHON=path/to/python (OLDEST_PYTHON=... for test-oldest, PARITY_PYTHON=... for test-parity)." >&2
    exit 1
  fi
  echo "Making $$environment with $$("$$python" --version) (1 GB on disk, up to 300 MB of it downloaded; about a minute on a fast connection)."
  rm -rf "$$environment"
  "$$python" -m venv "$$environment"
  echo "$(CURDIR)" >"$$environment/made-in"
fi

echo "Installing into $$environment ..."
# pip would compile thousands of modules that are never imported. Importing the stack once compiles those that are, takes a
# quarter of the time and shows that what was installed works. (The variable, set in many containers, would prevent it.)
"$$environment/bin/python" -m pip install $(if $(MAKE_TERMOUT),,--quiet) --disable-pip-version-check --prefer-binary --no-compile "$$@"
PYTHONDONTWRITEBYTECODE= "$$environment/bin/python" -c 'import jax, flax.linen, optax, orbax.checkpoint, tensorflow_datasets, sklearn.datasets, tensorboardX'
endef
export INSTALL

# An environment that was copied or moved along with its folder still imports from the old place, and one whose Python is gone
# doesn't start: then the stamps below mean nothing.
usable = $(shell [ "$$(cat $(1)/made-in 2>/dev/null)" = "$(CURDIR)" ] && $(1)/bin/python -c '' 2>/dev/null && echo yes)
ifneq ($(call usable,.venv),yes)
.venv/core .venv/dev .venv/browser .venv/docs: FORCE
endif
ifneq ($(call usable,.venv-oldest),yes)
.venv-oldest/dev: FORCE
endif
ifneq ($(call usable,.venv-parity),yes)
.venv-parity/dev: FORCE
endif

# The stamps come last, so an interrupted installation is taken up again.
.venv/core: pyproject.toml
	@sh -c "$$INSTALL" install .venv "$(PYTHON)" "$(PYTHONS)" -e .
	@touch $@

# The development extra brings the core too.
.venv/dev: pyproject.toml
	@sh -c "$$INSTALL" install .venv "$(PYTHON)" "$(PYTHONS)" -e '.[dev]'
	@touch .venv/core $@

.venv/browser: pyproject.toml
	@sh -c "$$INSTALL" install .venv "$(PYTHON)" "$(PYTHONS)" -e '.[dev,browser,docs]'
	@touch .venv/core .venv/dev $@

.venv/docs: pyproject.toml
	@sh -c "$$INSTALL" install .venv "$(PYTHON)" "$(PYTHONS)" -e '.[dev,docs]'
	@touch .venv/core .venv/dev $@

.venv-oldest/dev: pyproject.toml constraints/oldest.txt
	@sh -c "$$INSTALL" install .venv-oldest "$(OLDEST_PYTHON)" "$(OLDEST_PYTHONS)" -e '.[dev]' -c constraints/oldest.txt
	@touch $@

.venv-parity/dev: pyproject.toml
	@sh -c "$$INSTALL" install .venv-parity "$(PARITY_PYTHON)" "$(PARITY_PYTHONS)" -e '.[dev,parity]'
	@.venv-parity/bin/python -m pip install --quiet --disable-pip-version-check --no-compile --no-deps $(TORCHVISION)
	@touch $@

.PHONY: help train test test-slow test-zoo test-smoke test-full test-notebooks test-browser test-docs test-wheel test-parity docs lint format test-oldest clean FORCE

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-14s %s\n", $$1, $$2 }' Makefile

train: .venv/core ## train LeNet-5 on handwritten digits; CONFIG=, WORKDIR= another experiment, ARGS= more flags (with a WORKDIR of its own)
	.venv/bin/python experiments/train.py --config=$(CONFIG) --workdir=$(WORKDIR) $(ARGS)

test: .venv/dev ## run the tests; ARGS= for pytest, such as -k lenet
	.venv/bin/python -m pytest -q $(PARALLEL) -m "$(QUICK)" $(ARGS)

test-slow: .venv/dev ## run the tests of sweeps, several hosts and comparisons
	.venv/bin/python -m pytest -q $(PARALLEL) -m "slow and not full" $(ARGS)

test-zoo: .venv/dev ## run the tests of the large networks
	.venv/bin/python -m pytest -q $(PARALLEL) -m zoo $(ARGS)

test-full: .venv/dev ## run what takes long, an hour in all: networks at full depth, many kills, several hosts; ARGS=FILE for a part
	.venv/bin/python -m pytest -q -m full $(ARGS)

test-notebooks: .venv/dev ## run every notebook from start to end, ten minutes in all; ARGS="-k 01" for one
	.venv/bin/python -m pytest -q -m notebook tests/notebooks $(ARGS)

test-smoke: .venv/dev ## train two steps of every config on generated images
	.venv/bin/python -m pytest -q -m smoke $(ARGS)

test-docs: .venv/dev ## run the commands and examples of the documentation, three minutes in all
	.venv/bin/python -m pytest -q -n 2 -m docs tests/docs $(ARGS)

docs: .venv/docs ## build the documentation into site/; its pages open from the disk
	NO_MKDOCS_2_WARNING=1 .venv/bin/python -m mkdocs build --quiet --strict
	@echo "site/index.html"

lint: .venv/dev ## check style, formatting, the direction of imports, shell scripts, and that RESULTS.md is what results/ gives
	.venv/bin/python -m ruff check
	.venv/bin/python -m ruff format --check
	.venv/bin/lint-imports
	.venv/bin/shellcheck -x experiments/tpu/*.sh .ci/run cnn_research/commands/completion.bash
	.venv/bin/python experiments/results.py --check

format: .venv/dev ## format the code and apply the fixes that are safe
	.venv/bin/python -m ruff check --fix
	.venv/bin/python -m ruff format

test-oldest: .venv-oldest/dev ## run the tests with the oldest supported versions of everything
	.venv-oldest/bin/python -m pytest -q $(PARALLEL) -m "$(QUICK)" $(ARGS)

test-browser: .venv/browser ## open reports in a headless Chromium and look at them; REPORTS="FILE ..." others than the tests' own
	REPORTS="$(REPORTS)" .venv/bin/python -m pytest -q -m browser $(ARGS)

test-wheel: .venv/dev ## build the package, install it into an environment of its own, and use it there
	.venv/bin/python -m pytest -q -m wheel tests/end_to_end/test_wheel.py $(ARGS)

test-parity: .venv-parity/dev ## compare the networks with torchvision's, weights and logits
	.venv-parity/bin/python -m pytest -q -m parity $(ARGS)

clean: ## remove environments, caches and build outputs; runs/ stays
	rm -rf .venv .venv-oldest .venv-parity build dist site *.egg-info .pytest_cache .ruff_cache .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
