# `make help` lists the targets. Settings: PYTHON=... picks the Python that .venv is made with,
# DATA_DIR=... a folder with copies of the data sets, NOTEBOOK=notebooks/... another notebook than
# the course for run, notebook and lab.

# The first Python that is new enough and really runs; else python3, so that the set-up can say why.
PYTHON ?= $(shell for p in python3 python3.12 python3.11 python3.10; do \
	$$p -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null \
	&& { command -v $$p; exit; }; done; command -v python3)
PY := .venv/bin/python
PYTEST := $(PY) -m pytest -n 2 --dist loadfile --no-loadscope-reorder
NOTEBOOK := train_and_deploy.ipynb

.DEFAULT_GOAL := help
.PHONY: help run test test-runs bench benchmarks soak notebook lab site web web-deploy web-remove stop clean venv

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

run: venv  ## run the whole course on this machine; leaves build/train_and_deploy.{ipynb,html}
	@$(PY) -m studio.execute $(NOTEBOOK) --output build/$(NOTEBOOK) --html

test: venv  ## lint and test everything but the whole runs
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PYTEST) --ignore tests/notebooks --ignore tests/jobs

test-runs: venv  ## whole runs: every notebook on few pictures, every script as jobs on the local cloud
	@$(PYTEST) tests/notebooks tests/jobs

bench: venv  ## measure the local cloud against running by hand
	@$(PY) benchmarks/local_cloud.py --json build/bench.json

benchmarks: venv  ## measure training: speed and accuracy; writes the table in README.md; hours
	@$(PY) benchmarks/training.py

soak: venv  ## 50 kills of the local cloud, its jobs and endpoints at random moments; 200 jobs
	@SOAK_ROUNDS=50 SOAK_JOBS=200 $(PY) -m pytest tests/local_cloud/test_durability.py \
	tests/local_cloud/test_api.py -k "random_moments or many_jobs"

notebook: venv  ## execute the committed notebook (NOTEBOOK=...) again, in place
	@$(PY) -m studio.execute $(NOTEBOOK) --output $(NOTEBOOK)

lab: venv  ## open the notebook in JupyterLab
	@$(PY) -m jupyterlab $(NOTEBOOK) $(if $(filter 0,$(shell id -u)),--allow-root)

site: venv  ## all notebooks and documents as pages in build/site, to be read without a network
	@$(PY) -m tools.site --output build/site

web: venv  ## serve a model behind a web page on this machine (MODEL=, DATA=, PORT=)
	@$(PY) -m studio.web $(if $(MODEL),--model "$(MODEL)") $(if $(DATA),--data "$(DATA)") \
	$(if $(PORT),--port "$(PORT)")

web-deploy: venv  ## put the web app into your AWS account: ENDPOINT=name [PICTURES=dir] [EMAIL=…]
	@$(PY) -m web.deploy deploy --endpoint "$(ENDPOINT)" $(if $(PICTURES),--pictures "$(PICTURES)") \
	$(if $(EMAIL),--email "$(EMAIL)") $(if $(STACK),--stack "$(STACK)")

web-remove: venv  ## take it out again; offers the stored corrections for download first
	@$(PY) -m web.deploy remove $(if $(STACK),--stack "$(STACK)")

stop:  ## stop the local cloud: every job and endpoint ends; the next start remembers them
	@$(PY) -m local_cloud stop

clean:  ## stop the local cloud, forget what it holds, remove what was built, except .venv
	@test ! -x $(PY) || $(PY) -m local_cloud reset
	@rm -rf build

venv:
	@test -n "$(PYTHON)" || { echo "setup: no python3 on the PATH; install Python 3.10 to 3.12."; exit 1; }
	@$(PYTHON) tools/make_venv.py
