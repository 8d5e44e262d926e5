# make demo: train on a few photographs, enlarge one, draw the curves (under five minutes on two cores, after the installation)
# make test: lint and tests
# make torture: kills, failing disks, mutated files, all of them, and a table (about a quarter of an hour on two cores)
# make bench: four benchmarks against the classic loop, tables and JSON in results/bench (about ten minutes on two cores)
PYTHON ?= python3
BIN := .venv/bin
DEMO := results/demo
TRAIN := $(BIN)/python train.py --train-dir data/demo/train --val-dir data/demo/valid --upscale 4 --crop 32 \
	--crops-per-image 40 --batch-size 8 --pretrain-epochs 40 --epochs 2 \
	--pretrain-learning-rate 1e-3 --learning-rate 1e-4 --lr-schedule cosine --warmup-steps 20 --ema 0.99 \
	--val-every 8 --vgg-weights random --out $(DEMO)

BENCHMARKS := train_step data_loading epoch inference

.PHONY: demo test bench torture clean

demo: .venv/installed
	@$(BIN)/python prepare_data.py demo
	$(TRAIN)
	@$(BIN)/python test_image.py data/demo/valid/chelsea.png --weights $(DEMO)/checkpoints/generator_pretrained.pth \
		--out $(DEMO)/chelsea_x4.png --compare --overwrite
	@echo "validation pictures (bicubic | HR | SR): $(DEMO)/validation"
	@$(BIN)/python plot_statistics.py $(DEMO)/statistics.csv

test: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile

torture: .venv/installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python tests/torture.py

bench: .venv/installed
	@mkdir -p results/bench
	@for name in $(BENCHMARKS); do $(BIN)/python benchmarks/$$name.py --json results/bench/$$name.json || exit 1; done

.venv/installed: requirements.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check --quiet -r requirements.txt
	touch $@

.venv/installed-dev: requirements-dev.txt .venv/installed
	$(BIN)/python -m pip install --disable-pip-version-check --quiet -r requirements-dev.txt
	touch $@

clean:
	rm -rf .venv results data/demo .pytest_cache .ruff_cache .hypothesis
