# Two commands: `make edit` shows what it does, `make test` shows that it holds.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PHOTO ?= examples/extreme-desert-hike.jpg
MASK ?= $(basename $(PHOTO))_mask.png
OUT ?= out/$(notdir $(basename $(PHOTO))).png

.PHONY: edit test check clean

edit: $(VENV)/edit
	mkdir -p $(dir $(OUT))
	$(BIN)/hilo edit $(PHOTO) --mask $(MASK) -o $(OUT) --compare

test: $(VENV)/test
	$(BIN)/pytest

check: $(VENV)/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

$(VENV)/edit: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e .
	touch $@

$(VENV)/test: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) out
