# Everything runs from .venv; `make setup` builds it from hash-pinned lists. PYTHON=… names an interpreter (3.11 to 3.13); without
# it, requirements/find-python looks for one.
PYTHON ?=
VENV := .venv
BIN := $(VENV)/bin
UV := UV_SYSTEM_CERTS=1 $(BIN)/uv
export OMP_NUM_THREADS ?= 1

.PHONY: setup tools demo docs test trainings laws fuzz contract faults soak quality bench mlflow images images-test cluster aws audit lint clean lock

setup:
	@requirements/setup $(VENV) $(PYTHON)

# helm and kubectl, for the chart's tests and `make cluster`.
tools: setup
	@requirements/tools $(VENV)

demo: setup
	$(BIN)/riffle demo $(if $(DATA),--data $(DATA))

# The documentation as a site in .venv/site, with search; `.venv/bin/mkdocs serve` shows it while one writes.
docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet
	@echo "$(VENV)/site/index.html"

# Unit tests and two halves of the integration tests side by side, because the latter mostly wait, each half for a stack of its own;
# the fuzzers after the first half. What the others print is shown after the output of these. The trap ends them too: a shell's background jobs ignore Ctrl-C.
test: setup
	@requirements/tools $(VENV) || echo "helm could not be had: the chart's tests are skipped."
	@requirements/specs $(VENV) || echo "AsyncAPI's schemas could not be had: the document is checked without them."
	@trap 'kill $$unit $$second 2> /dev/null; exit 130' INT TERM; \
	$(BIN)/python -m pytest tests/unit -m "not slow" > $(VENV)/unit.log 2>&1 & unit=$$!; \
	$(BIN)/python -m pytest --durations=12 tests/integration/test_[q-z]*.py > $(VENV)/integration.log 2>&1 & second=$$!; \
	$(BIN)/python -m pytest --durations=12 tests/integration/test_[a-p]*.py; first=$$?; \
	$(BIN)/python -m pytest tests/fuzz; fuzz=$$?; \
	wait $$second; second=$$?; cat $(VENV)/integration.log; \
	wait $$unit; unit=$$?; cat $(VENV)/unit.log; exit $$((unit | first | fuzz | second))

# Tests with whole trainings that take minutes each: that rankers learn what they should, resume, and come out the same.
trainings: setup
	$(BIN)/python -m pytest tests/unit -m slow --durations=0

# The property tests with EXAMPLES of each law (500), other ones at each run; LAW=name for some of them.
laws: setup
	LAW_EXAMPLES=$(or $(EXAMPLES),500) $(BIN)/python -m pytest tests/unit -m "hypothesis and not slow" $(if $(LAW),-k $(LAW))

# Generated input against every boundary: CASES a fuzzer (10000), FUZZ=name for one of tests/fuzz. Minutes.
fuzz: setup
	FUZZ_CASES=$(or $(CASES),10000) $(BIN)/python -m pytest tests/fuzz $(if $(FUZZ),-k $(FUZZ)) --durations=0

# A running worker answers as its OpenAPI document says: CASES requests of each kind to each route (150, some minutes), ROUTE=part for some of
# them. Both documents are valid by the published schemas.
contract: setup
	requirements/specs $(VENV)
	CONTRACT_CASES=$(or $(CASES),150) CONTRACT_ROUTE='$(ROUTE)' $(BIN)/python -m pytest --timeout=3600 --durations=0 -rs \
		tests/unit/web/test_openapi.py tests/unit/docs/test_asyncapi.py tests/integration/test_openapi_fuzz.py

# Faults at random moments under load: TRIALS seeds of each (20 takes hours), FAULT=name for one kind.
faults: setup
	TRIALS=$(or $(TRIALS),20) $(BIN)/python -m pytest tests/faults $(if $(FAULT),-k $(FAULT))

# Memory of a worker at full rate; MINUTES=10.
soak: setup
	$(BIN)/python benchmarks/soak.py --minutes $(or $(MINUTES),10) --json

# Needs DATA=folder: trains on its first 80 %, measures the slates on the rest. Some minutes.
quality: setup
	$(BIN)/riffle evaluate $(or $(DATA),$(error give the dataset: make quality DATA=folder)) --before --json

# Throughput and latency; DATA=folder is a dataset, on which a release is trained unless RELEASE=folder names one. PEERS=folder runs
# the peers' ingest.py and echo.py on the same broker.
bench: setup
	$(BIN)/python benchmarks/ingest.py --json $(if $(PEERS),--peers $(PEERS)/ingest.py)
	$(BIN)/python benchmarks/serve.py $(DATA) --json $(if $(RELEASE),--release $(RELEASE)) $(if $(PEERS),--peers $(PEERS))
	$(BIN)/python benchmarks/lists.py --json
	$(BIN)/python benchmarks/examples.py --json

# Runs are recorded on a real MLflow server, which has an environment of its own: it needs older packages than the rest.
mlflow: setup
	$(UV) venv --quiet --allow-existing --python $(BIN)/python $(VENV)/mlflow
	$(UV) pip install --quiet --python $(VENV)/mlflow/bin/python --require-hashes -r requirements/mlflow.txt
	$(BIN)/python -m pytest tests/unit/training/test_mlflow.py -rs

# Needs root, buildah and, unless BASE=image names a base, mmdebstrap. IMAGES: of serve, tracing (serve with OpenTelemetry), ranking-gpu and train.
images:
	docker/build $(or $(IMAGES),serve ranking-gpu train)

# Needs podman and runc, and the images: runs each that is built as another user, read-only, without capabilities.
images-test: setup
	$(BIN)/python -m pytest tests/images -rs

# The chart on a real API server and, with the worker's image, on a node. Kubernetes is built the first time: ten minutes of processor time.
# Needs root, Go, and Debian's etcd-server containerd runc buildah podman iptables containernetworking-plugins.
cluster: tools
	$(BIN)/python -m pytest tests/cluster -rs

# deploy/terraform without an account: validated with the provider's schemas, applied to a mocked AWS, and checkov. Needs terraform or OpenTofu,
# and Go, with which a stub of the provider is built the first time (a minute of processor time).
aws: tools
	$(UV) venv --quiet --allow-existing --python $(BIN)/python $(VENV)/aws
	$(UV) pip install --quiet --python $(VENV)/aws/bin/python --require-hashes -r requirements/aws.txt
	$(BIN)/python -m pip download --quiet --no-deps --require-hashes --only-binary :all: -d $(VENV)/aws/wheels -r requirements/aws-schema.txt
	$(BIN)/python -m pytest tests/aws -rs

# Licences and known vulnerabilities of every pinned package; needs the index and its advisories. `requirements/audit .venv` has statuses of its own:
# 1 for a finding, 75 if one of both did not answer.
audit: setup
	@requirements/audit $(VENV)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

lock: setup
	UV_SYSTEM_CERTS=1 requirements/lock $(BIN)/uv

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache
