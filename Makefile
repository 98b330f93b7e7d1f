# `make edit` shows what it does, `make app` lets you try it, `make test` shows that it holds.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PHOTO ?= examples/extreme-desert-hike.jpg
MASK ?= $(basename $(PHOTO))_mask.png
OUT ?= out/$(notdir $(basename $(PHOTO))).png

COMFY := $(VENV)-comfy

.PHONY: edit app test check docs dist test-comfy comfy-pack clean

edit: $(VENV)/edit
	mkdir -p $(dir $(OUT))
	$(BIN)/hilo edit $(PHOTO) --mask $(MASK) -o $(OUT) --compare

app: $(VENV)/app
	$(BIN)/hilo app

test: $(VENV)/test
	$(BIN)/pytest

check: $(VENV)/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

# The site, in build/site: a warning, such as of a dead link, is an error.
docs: $(VENV)/test
	$(BIN)/python -m sphinx --fail-on-warning --keep-going -q -c docs/site -d build/doctrees . build/site
	@echo "open build/site/index.html"

# Wheel and source distribution in dist/, looked through; and the wheel, installed into an
# environment of its own, which borrows PyTorch and the like, edits a photo offline.
dist: $(VENV)/test
	rm -rf build/lib build/wheel dist/*.whl dist/*.tar.gz
	$(BIN)/python -m build --no-isolation --outdir dist
	$(BIN)/twine check --strict dist/*.whl dist/*.tar.gz
	$(BIN)/check-wheel-contents dist/*.whl
	$(PYTHON) -m venv build/wheel
	build/wheel/bin/python -m pip install --quiet --no-deps dist/*.whl
	$(BIN)/python -c "import sysconfig; print(sysconfig.get_path('purelib'))" \
		> $$(build/wheel/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/borrowed.pth
	cp examples/canyon-wren.jpg examples/canyon-wren_mask.png build/wheel
	cd build/wheel && HF_HUB_OFFLINE=1 bin/hilo edit canyon-wren.jpg --mask canyon-wren_mask.png \
		-o edited.png --size 128 --steps 2
	ls -l dist

# The nodes for ComfyUI, on a ComfyUI of its own: docs/tutorials/comfyui.md.
test-comfy: $(COMFY)/ready
	PYTHONPATH=src OMP_NUM_THREADS=1 $(COMFY)/bin/python -m pytest comfyui/tests -n 2 --dist loadfile

# The same as one folder for custom_nodes, with the engine inside.
comfy-pack:
	rm -rf dist/hilotoken
	mkdir -p dist/hilotoken/engine
	cp -r LICENSE comfyui/*.py comfyui/*.toml comfyui/*.txt comfyui/example comfyui/example_workflows dist/hilotoken
	cp -r src/hilotoken dist/hilotoken/engine
	find dist/hilotoken -name __pycache__ -prune -exec rm -r {} +

$(VENV)/edit: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e .
	touch $@

$(VENV)/app: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[app]'
	touch $@

$(VENV)/test: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@

# It borrows the packages of the other, torch among them.
$(COMFY)/ready: comfyui/tests/requirements.txt $(VENV)/test
	$(PYTHON) -m venv $(COMFY)
	$(BIN)/python -c "import sysconfig; print('import site; site.addsitedir(%r)' % sysconfig.get_path('purelib'))" \
		> $$($(COMFY)/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/borrowed.pth
	$(COMFY)/bin/python -m pip install --quiet --no-deps -r comfyui/tests/requirements.txt
	touch $@

clean:
	rm -rf $(VENV) $(COMFY) build dist out
