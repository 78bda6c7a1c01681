# Two commands do everything on a machine with Python (3.10-3.15) and make: demo and test.
# What was done is kept in .venv/.done-*, and done again only when what it came from has changed.

# Tests start hundreds of processes: where byte code may not be written each compiles it all again.
unexport PYTHONDONTWRITEBYTECODE

PYTHON ?= python3
DEMO_SECONDS ?= 60
STORM_EXAMPLES ?= 20000
COVERED ?= tests/unit tests/e2e
MUTANTS ?= 200
MINUTES ?= 20
SEED ?= 1
PYTHONS ?= 3.10 3.14

BIN := .venv/bin
UV := $(BIN)/uv pip install --quiet --python $(BIN)/python
SOURCES := $(shell find otel_sse -not -path '*/__pycache__*') README.md LICENSE pyproject.toml

.PHONY: help demo unit test pythons apps peers docs bench count fuzz storm soak million coverage lint format clean mutants

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## /  make \1\t/p' Makefile | expand -t 16
	@echo '  PYTHON=python3.12 chooses the Python of a new .venv, DEMO_SECONDS=20 how long the demo runs,'
	@echo '  STORM_EXAMPLES=1000 how many applications the storm runs, COVERED=tests/unit what coverage runs,'
	@echo "  PEERS='flask httpx' whose suites run,"
	@echo '  MINUTES=60 how long the soak lasts, MUTANTS=50 how many mutants are drawn, SEED=2 which ones, MODULES=wire/ of which modules.'

demo: .venv/.done-demo .venv/.done-wheel ## serve and read real streams for a minute, and show what is reported of them
	@cd examples && DEMO_SECONDS=$(DEMO_SECONDS) ../$(BIN)/python -m demo

unit: .venv/.done-test .venv/.done-wheel ## run the fast tests, of single modules: less than a minute
	@FUZZ_EXAMPLES=100 $(BIN)/pytest tests/unit -m 'not slow' --numprocesses 2

test: lint .venv/.done-wheel $(if $(CI)$(wildcard .venv/.done-apps),.venv/.done-apps) ## check and test everything, against the built wheel
	@$(BIN)/python -I -c 'import otel_sse as o; print("Testing otel_sse", o.__version__, o.__path__[0])'
	@$(BIN)/pytest --numprocesses 4 --dist loadfile --no-loadscope-reorder
	@$(MAKE) --no-print-directory pythons

pythons: .venv/.done-test .venv/.done-wheel ## test on Python 3.10 and 3.14, where this machine has them
	@WHEEL=$$(ls .build/*.whl) $(BIN)/nox --sessions $(foreach each,$(PYTHONS),unit-$(each) e2e-$(each))

apps: .venv/.done-apps ## run published applications, in environments of their own
	@$(BIN)/pytest tests/applications --numprocesses 2 --dist loadscope --durations 10

peers: .venv/.done-test .venv/.done-wheel ## run peers' own test suites with otel_sse and without it, and compare
	@$(BIN)/python tests/peers/run.py $(PEERS)

docs: .venv/.done-test .venv/.done-wheel ## write the reference, and build the pages into .build/docs; a warning is an error
	@$(BIN)/python docs/generate.py
	@$(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet -b html docs .build/docs
	@echo 'Built .build/docs/index.html'

bench: .venv/.done-test .venv/.done-wheel ## measure what instrumentation costs
	@$(BIN)/python benchmarks/bench.py

count: .venv/.done-test .venv/.done-wheel ## count the instructions that it takes, with valgrind
	@$(BIN)/python benchmarks/instructions.py

fuzz: .venv/.done-test .venv/.done-wheel ## feed the parser random streams
	@$(BIN)/python benchmarks/fuzz.py

soak: .venv/.done-test .venv/.done-wheel ## have clients of every kind come and go on three servers, and look for leaks
	@$(BIN)/python benchmarks/soak.py --minutes $(MINUTES)

million: .venv/.done-test .venv/.done-wheel ## serve a million streams, and look for leaks
	@$(BIN)/python benchmarks/million.py

storm: .venv/.done-test .venv/.done-wheel ## run random applications with otel_sse and without it, and compare
	@$(BIN)/python tests/storm/run.py $(STORM_EXAMPLES)

coverage: .venv/.done-test .venv/.done-wheel ## show what the tests run of the package, and which lines they miss
	@rm -rf .build/coverage
	@$(BIN)/coverage run $(BIN)/pytest $(COVERED) -m "not slow" --numprocesses 2; tests=$$?; \
	  $(BIN)/coverage combine --quiet && $(BIN)/coverage report && exit $$tests

mutants: .venv/.done-test .venv/.done-mutants .venv/.done-wheel ## change the package in small ways, and report what no test notices
	@$(BIN)/python tests/mutants/run.py $(MUTANTS) $(SEED) $(MODULES)

lint: .venv/.done-test .venv/.done-wheel ## check style, spelling and types
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/codespell
	@$(BIN)/mypy --strict otel_sse
	@$(BIN)/lint-imports --no-cache
	@cd examples && ../$(BIN)/mypy --strict -p demo -p server
	@$(BIN)/mypy --strict examples/small
	@$(BIN)/mypy --strict collector noxfile.py .github/check_release.py

format: .venv/.done-test ## put the sources into the project's style
	@$(BIN)/ruff check --fix
	@$(BIN)/ruff format

clean: ## remove all that make has made
	rm -rf .venv .build .mypy_cache .pytest_cache .ruff_cache .hypothesis

.venv/.done-uv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
	  || { echo '$(PYTHON) has to be Python 3.10 or later: make PYTHON=python3.12 ...' >&2; exit 1; }
	@echo 'Making .venv ...'
	@$(PYTHON) -m venv .venv
	@echo 'Installing uv into it ...'
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	@touch $@

.venv/.done-build .venv/.done-demo .venv/.done-docs .venv/.done-mutants .venv/.done-test: .venv/.done-%: pyproject.toml .venv/.done-uv
	@echo 'Installing what $* needs ...'
	@$(UV) --requirements pyproject.toml --extra otlp --group $*
	@touch $@

.venv/.done-apps: tests/applications/environments.py .venv/.done-test .venv/.done-wheel
	@echo 'Installing applications, each into an environment of its own ...'
	@$(BIN)/python tests/applications/environments.py
	@touch $@

.venv/.done-wheel: $(SOURCES) .venv/.done-build
	@echo 'Building the wheel ...'
	@rm -rf .build
	@$(BIN)/uv build --quiet --wheel --no-build-isolation --python $(BIN)/python --out-dir .build
	@echo 'Installing it ...'
	@$(UV) --offline --no-deps --reinstall .build/*.whl
	@touch $@
