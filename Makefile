# make demo    set up .venv if needed, then generate, edit and describe with the embedded model
# make test    lint, types and tests      make proof   the long forms of the promises
# make overfit each tiny stage learns 64 samples by heart; part of proof, resumable
# make tiny    train the tiny models from nothing, DEVICE=cuda on a GPU; resumable, hours on a CPU
# make table4  the paper's Table 4 in the embedded world, SEEDS="0 1 2" of them; resumable, hours on a CPU
# make lock    write constraints/lock.txt from the current environment
#
# PYTHON=python3.12 picks the interpreter, TORCH="torch==2.13.0" the build of torch, JOBS=4 the test processes.

PYTHON ?= python3
TORCH  ?= torch==2.13.0
JOBS   ?= $(shell nproc 2>/dev/null || echo 2)
RUN    := .venv/bin
READY  := .venv/.ready

# One thread a process: two test processes with two threads each on two cores crawl.
TEST_ENV := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false

.PHONY: setup demo test lint types unit proof overfit tiny table4 lock clean

setup: $(READY)

# The CPU constraints hold only where torch came without CUDA.
$(READY): pyproject.toml constraints/lock.txt constraints/cpu.txt
	test -x $(RUN)/python || $(PYTHON) -m venv .venv
	$(RUN)/python -m pip install --quiet "$(TORCH)"
	cpu=$$($(RUN)/python -c "import torch; print('' if torch.version.cuda else '-c constraints/cpu.txt')"); \
	  $(RUN)/python -m pip install --quiet -e ".[dev]" -c constraints/lock.txt $$cpu
	touch $(READY)

demo: $(READY)
	$(RUN)/python scripts/demo.py

test: lint types unit

lint: $(READY)
	$(RUN)/ruff check .
	$(RUN)/ruff format --check .

types: $(READY)
	$(RUN)/mypy

unit: $(READY)
	$(TEST_ENV) $(RUN)/python -m pytest -n $(JOBS) -m "not slow"

# Also what needs an extra that slows every start: torchao's 8-bit weights.
proof: $(READY)
	$(RUN)/python -m pip install --quiet -e ".[dev,quant]" -c constraints/lock.txt
	$(TEST_ENV) $(RUN)/python -m pytest -n $(JOBS)
	$(MAKE) overfit

overfit: $(READY)
	$(TEST_ENV) $(RUN)/python scripts/overfit.py runs/overfit

tiny: $(READY)
	$(TEST_ENV) $(RUN)/python scripts/tiny.py --set device=$(or $(DEVICE),auto)
	$(RUN)/python scripts/tiny.py ship

table4: $(READY)
	$(TEST_ENV) $(RUN)/python scripts/table4.py --seeds $(or $(SEEDS),0) --set grpo.device=$(or $(DEVICE),auto)

lock: $(READY)
	$(RUN)/python -m pip freeze --exclude-editable --exclude torch | grep -v "@ file" > constraints/lock.txt

clean:
	rm -rf .venv demo dist build .pytest_cache .mypy_cache .ruff_cache
