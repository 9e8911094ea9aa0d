# Every target does its own set-up: a virtual environment in .venv, made once.
PYTHON ?= python3
BIN := .venv/bin
MODULES := trisparse kernels sparse_ops prune
TYPES := build/types/trisparse

.PHONY: setup demo test lint

setup: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[glue,plot,tensorboard,onnx,dev]'
	touch $@

demo: setup
	$(BIN)/trisparse demo

# a worker for each core, each with one thread; a file's tests share a worker and what they set up
test: setup
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses logical --dist loadfile

# mypy follows import names, and ours differ from the folders: give it a tree of links where they agree.
lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	rm -rf $(TYPES) && mkdir -p $(TYPES)
	cd $(TYPES) && ln -s ../../../trisparse/* . && ln -s ../../../kernels ../../../sparse_ops ../../../prune .
	@$(BIN)/mypy > build/mypy.log || { cat build/mypy.log; exit 1; }
	@want=$$(git ls-files $(foreach m,$(MODULES),'$(m)/*.py') | wc -l); \
	grep " in $$want source files" build/mypy.log || { echo "mypy did not check all $$want tracked modules:"; cat build/mypy.log; exit 1; }
