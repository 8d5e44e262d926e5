# make demo: train on a few photographs, enlarge one, plot the curves (under five minutes on two cores once installed)
# make test: lint, types and tests
# make torture: kills, failing disks and hostile files, with a table of what survived (ten minutes on two cores)
# make bench: four benchmarks against the classic loop, tables and JSON in results/bench (about ten minutes on two cores)
# make lock: pin all versions and hashes again after changing requirements*.txt (needs uv, and uses its configured index)
PYTHON ?= python3
BIN := .venv/bin
DEMO := results/demo
TRAIN := $(BIN)/python train.py --train-dir data/demo/train --val-dir data/demo/valid --upscale 4 --crop 32 \
	--crops-per-image 40 --batch-size 8 --pretrain-epochs 40 --epochs 2 \
	--pretrain-learning-rate 1e-3 --learning-rate 1e-4 --lr-schedule cosine --warmup-steps 20 --ema 0.99 \
	--val-every 8 --perceptual squeezenet --out $(DEMO)

BENCHMARKS := train_step data_loading epoch enlarging

# For the download of the demo's perceptual weights, Python's start included. There is no limit if they
# are here already, or where `timeout` is missing, as on macOS.
DOWNLOAD_SECONDS := 15
HUB = $(or $(TORCH_HOME),$(HOME)/.cache/torch)/hub/checkpoints
LIMIT = $(if $(wildcard $(HUB)/squeezenet1_1*),,$(shell command -v timeout > /dev/null && \
	echo timeout -k 2 $(DOWNLOAD_SECONDS)))

.PHONY: demo test bench torture lock clean

demo: .venv/installed
	@$(BIN)/python prepare_data.py demo
	@source=$$($(LIMIT) $(BIN)/python prepare_data.py perceptual) || { source=random; \
		echo "could not download SqueezeNet's weights (5 MB) within $(DOWNLOAD_SECONDS) seconds:" \
		"using untrained features" >&2; }; \
		echo '$(TRAIN)' --perceptual-weights $$source && $(TRAIN) --perceptual-weights $$source
	@$(BIN)/python test_image.py data/demo/valid/chelsea.png --weights $(DEMO)/checkpoints/generator_pretrained.pth \
		--out $(DEMO)/chelsea_x4.png --compare --overwrite
	@echo "validation pictures (bicubic | HR | SR): $(DEMO)/validation"
	@$(BIN)/python plot_statistics.py $(DEMO)/statistics.csv
	@$(BIN)/python test_image.py data/demo/valid/chelsea.png --weights srgan_x4 --compare-with srresnet_x4 \
		--out $(DEMO)/chelsea_srgan_x4.png --overwrite
	@echo "the trained files of this project (bicubic | srresnet_x4 | srgan_x4): $(DEMO)/chelsea_srgan_x4_compare.png"
	@echo "your own pictures, in a browser: $(BIN)/pip install gradio && $(BIN)/python app.py"

test: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist worksteal

torture: .venv/installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python tests/torture.py

bench: .venv/installed-dev
	@mkdir -p results/bench
	@for name in $(BENCHMARKS); do $(BIN)/python benchmarks/$$name.py --json results/bench/$$name.json || exit 1; done

# Locked packages are checked against their hashes. torch and torchvision, whose builds differ between machines, come last.
PIP_INSTALL = $(BIN)/python -m pip install --disable-pip-version-check --quiet
.venv/installed: requirements.txt requirements.lock
	$(PYTHON) -m venv .venv
	$(PIP_INSTALL) --require-hashes --no-deps -r requirements.lock
	$(PIP_INSTALL) -r requirements.txt
	touch $@

.venv/installed-dev: requirements-dev.txt requirements-dev.lock .venv/installed
	$(PIP_INSTALL) --require-hashes --no-deps -r requirements-dev.lock
	$(PIP_INSTALL) -r requirements-dev.txt
	touch $@

lock:
	$(LOCK) requirements.txt $(KEEP_PLATFORM_FREE) > requirements.lock
	$(LOCK) --constraints requirements.lock requirements-dev.txt $(KEEP_PLATFORM_FREE) > requirements-dev.lock
LOCK = uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate --no-header
KEEP_PLATFORM_FREE = | awk '/^[^ ]/ { skip = /^(torch|torchvision|triton|nvidia-|cuda-)[=a-z]/ } !skip'

clean:
	rm -rf .venv $(DEMO) results/bench data/demo .pytest_cache .ruff_cache .mypy_cache .hypothesis
