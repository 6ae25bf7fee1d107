# Each target does the set-up it needs. Another Python: make setup PYTHON=python3.12
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

# The stamp is written last, so an interrupted installation has none. An environment that no longer runs (its Python
# was removed, it was copied from another folder, a package is gone) is made anew.
WORKS := import os, sys; from importlib.util import find_spec as f; \
  here = f("rectune").origin.startswith(os.path.realpath("src")); \
  sys.exit(not (here and all(map(f, ("torch", "transformers", "pytest", "ruff", "mypy")))))
ifneq ($(shell test -e $(STAMP) && $(BIN)/python -c '$(WORKS)' 2>/dev/null && echo ok),ok)
.PHONY: $(STAMP)
endif

.PHONY: setup demo test test-quick faults distributed lint structure docs dist bench validate fuzz study study-real
setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@rm -f $(STAMP)
	$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install --quiet -c constraints.txt pip setuptools
	@echo 'installing the pinned packages into .venv (a minute or two)'
	$(BIN)/python -m pip install --quiet -c constraints.txt --no-build-isolation -e '.[dev]'
	@touch $(STAMP)

demo: $(STAMP)
	$(BIN)/python -m rectune.demo

# A process for each core, each with one thread; a file's tests stay together, as they share what is costly.
test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n logical --maxprocesses 8 --dist loadfile

# Every verb once and what is light in each area, in under 90 seconds on two cores.
QUICK := $(addprefix tests/, \
  test_walkthrough.py test_architecture.py test_cli.py test_config.py test_doctests.py test_documentation.py \
  test_errors.py test_import.py test_logprobs.py test_objectives.py test_release.py \
  test_structure.py test_theory.py data/test_converters.py data/test_packing.py data/test_problems.py \
  data/test_loading.py models/test_attention.py models/test_loading.py models/test_lora.py training/test_monitors.py \
  training/test_pairs.py training/test_determinism.py sampling/test_token_sampler.py sampling/test_kv_cache.py \
  grading/test_math.py grading/test_selection.py evaluation/test_tasks.py \
  evaluation/test_decomposition.py evaluation/test_accuracy.py experiments/test_problems.py \
  diagnosis/test_diagnose.py rft/test_rft.py::test_the_settings_are_these rl/test_advantages.py \
  rl/test_objective.py pages/test_pages.py reporting/test_report.py \
  reproduction/test_paper.py faults/test_damage.py fuzz/test_found.py)
test-quick: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m 'not slow' -n logical --maxprocesses 8 --dist loadfile $(QUICK)

# Kills runs at random moments; the seed that it prints repeats them: make faults RECTUNE_FAULTS_SEED=...
faults: $(STAMP)
	$(BIN)/python -m pytest -m 'faults or not faults' -s tests/faults
	$(BIN)/python -m pytest -m faults tests/experiments tests/reproduction

# Two and four processes on this machine: all objectives, plain and sharded, kills and restarts.
distributed: $(STAMP)
	$(BIN)/python -m pytest -m distributed -s tests/training

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python scripts/make_cli_docs.py --check
	$(BIN)/python scripts/make_scaling_docs.py --check
	$(BIN)/python scripts/make_data_docs.py --check
	$(BIN)/python scripts/audit.py

# Sizes beside their targets; fails where a name is used twice, an import circle or a fragment is found.
structure: $(STAMP)
	$(BIN)/python scripts/structure.py

# The site, in site/; a broken link is an error. What needs no mkdocs is in tests/test_documentation.py.
docs: $(STAMP)
	$(BIN)/python -m pip install --quiet -c constraints.txt --no-build-isolation -e '.[docs]'
	$(BIN)/mkdocs build --strict

# The archives of a release, in dist/.
dist: $(STAMP)
	$(BIN)/python -m pip install --quiet -c constraints.txt build
	$(BIN)/python -m build --no-isolation

# Hostile input: for an hour by hypothesis, and for another by atheris where it is installed.
FUZZ_SECONDS ?= 3600
fuzz: $(STAMP)
	$(BIN)/python tests/fuzz/long.py --seconds $(FUZZ_SECONDS)

bench: $(STAMP)
	for name in startup head step diagnosis data grading sampling comparison; do $(BIN)/python benchmarks/$$name.py || exit 1; done
	$(BIN)/python benchmarks/table.py

validate: $(STAMP)
	$(BIN)/python scripts/validate_diagnosis.py

# All objectives under eleven conditions of data, on two cores in under 150 minutes; a real model in under two hours.
study: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m recipes.study.run

study-real: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m recipes.study.run --part real
