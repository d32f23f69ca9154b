# The main commands. Each first creates .venv and installs into it, if necessary.
PYTHON ?= python3
VENV := .venv
BIN := $(CURDIR)/$(VENV)/bin
INSTALLED := $(VENV)/.installed
TOOLS := $(VENV)/.installed-tools
GENOME ?=
TESTS ?= tests
# Processes of `make test`. The tests of a file stay in one process, so that they share its fixtures.
WORKERS ?= 2
PARALLEL := -n $(WORKERS) --dist loadfile
DEMO_DIR ?= demo
LOWEST := .venv-lowest
TRANSFORMERS := .venv-transformers
LOWEST_TESTS := tests/unit tests/parity tests/multiprocess/train/test_pretrain.py \
    tests/integration/export/test_export.py tests/integration/train/test_spine.py
# The launcher and the tests use the environment's programs, and one tokenizer thread per process.
export PATH := $(BIN):$(PATH)
export TOKENIZERS_PARALLELISM := false
ifneq ($(words $(CURDIR)),1)
$(error $(CURDIR): make needs a checkout whose path has no blanks; move or rename the folder)
endif

.PHONY: help install demo packages test test-all test-cluster test-lowest test-transformers lint docs coverage bench clean

help:
	@echo "make demo [GENOME=my.fa.gz]   from a genome to a fine-tuned model, in minutes on two cores"
	@echo "make test [WORKERS=2]         lint, then all tests"
	@echo "make test-all                 the same, with the Debian packages that some tests need; a skipped test fails"
	@echo "make test-cluster             tests with Slurm, pdsh, ssh and sshfs"
	@echo "make packages                 install those Debian packages (as root)"
	@echo "make test-lowest              some tests, with the lowest versions that pyproject.toml allows"
	@echo "make test-transformers        load exports in other releases of transformers"
	@echo "make lint                     ruff, types, links in the docs, shell scripts, Dockerfile, files for GitHub"
	@echo "make docs                     write docs/configuration.md from the code, and the site to build/site"
	@echo "make coverage [TESTS=tests/unit]   code coverage of the tests, by package"
	@echo "make bench                    benchmarks compared with other tools"
	@echo "make clean                    remove the environments and the demo"

install: $(INSTALLED)

$(INSTALLED): pyproject.toml setup.py constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "Python 3.11 or later is needed; pass its name, as in make PYTHON=python3.12" >&2; exit 2; }
	@echo "Creating $(VENV), 1 of 3: pip"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --upgrade pip -c constraints.txt
	@echo "Creating $(VENV), 2 of 3: torch, the largest package"
	@$(BIN)/python -m pip install --quiet -c constraints.txt torch setuptools
	@echo "Creating $(VENV), 3 of 3: dnabert_rm and its other dependencies"
	@# Hide setuptools' warning about editable installs.
	@PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet -c constraints.txt -e '.[all]'
	@touch $@
	@echo "Done. Next: source $(VENV)/bin/activate"

$(TOOLS): $(INSTALLED)
	@echo "Adding the tools of the tests and the documents to $(VENV)"
	@PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet -c constraints.txt -e '.[test]'
	@touch $@

demo: $(INSTALLED)
	@bash launch_scripts/demo.sh "$(DEMO_DIR)" "$(GENOME)"

test: lint
	$(BIN)/python -m pytest $(PARALLEL)

# As in CI: a skipped test is a failure. One process, because the benchmarks among the tests have time limits.
test-all: packages lint
	$(BIN)/python -m pytest --fail-skipped

packages:
	@packages="$$(grep -v '^#' tests/packages.txt)"; dpkg -s $$packages >/dev/null 2>&1 || { \
	    apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends $$packages; }

test-cluster: packages $(TOOLS)
	$(BIN)/python -m pytest -rs tests/cluster

test-lowest: export PATH := $(CURDIR)/$(LOWEST)/bin:$(PATH)
test-lowest:
	$(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/python -m pip install --quiet -c constraints-lowest.txt torch setuptools
	$(LOWEST)/bin/python -m pip install --quiet -c constraints-lowest.txt -e '.[test]'
	$(LOWEST)/bin/python -m pytest $(LOWEST_TESTS)

# The oldest release of transformers that loads an export, the last of version 4, and the newest.
test-transformers: $(TOOLS)
	$(BIN)/python tests/other_transformers.py write $(TRANSFORMERS)/exports
	for version in 4.40.2 4.57.6 5.24.0; do \
	    folder=$(TRANSFORMERS)/$$version; \
	    $(PYTHON) -m venv $$folder && \
	    $$folder/bin/python -m pip install --quiet -c constraints.txt torch numpy && \
	    $$folder/bin/python -m pip install --quiet transformers==$$version && \
	    $$folder/bin/python tests/other_transformers.py check $(TRANSFORMERS)/exports || exit; \
	done

lint: $(TOOLS)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python docs/check_links.py
	@# pretrain.sh is both shell and Python: the shell part ends at the line of three quotes.
	sed "/^'''$$/,\$$d" launch_scripts/pretrain.sh | $(BIN)/shellcheck -
	$(BIN)/shellcheck -x $(filter-out launch_scripts/pretrain.sh,$(wildcard launch_scripts/*.sh launch_scripts/*.slurm))
	@# DL3008 wants fixed versions of Debian's packages, which a release of the base image would break.
	$(BIN)/hadolint --ignore DL3008 packaging/Dockerfile
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.github-issue-forms .github/ISSUE_TEMPLATE/bug.yml \
	    .github/ISSUE_TEMPLATE/feature.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.citation-file-format CITATION.cff

docs: $(TOOLS)
	$(BIN)/python docs/write_configuration.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

coverage: $(TOOLS)
	@# The deselected test has a time limit and ends with os._exit. There coverage writes its file, which takes too long.
	$(BIN)/python -m pytest --cov --cov-report=json $(TESTS) \
	    --deselect tests/multiprocess/train/test_stopping.py::test_a_loader_that_hangs_ends_the_run_with_the_stacks_of_its_worker
	$(BIN)/python benchmarks/code_figures.py --coverage coverage.json

bench: $(TOOLS)
	for name in data_prep loader train_step; do $(BIN)/python "benchmarks/$$name.py" || exit; done

clean:
	rm -rf $(VENV) $(LOWEST) $(TRANSFORMERS) "$(DEMO_DIR)"
