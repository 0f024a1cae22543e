# Every target sets up .venv by itself, once. PYTHON=... and TORCH_INDEX=... are for tools/setup.sh.
.DEFAULT_GOAL := help
.PHONY: help lab run check test notebooks bench pretrained address clean

PY := .venv/bin/python
READY := .venv/.complete
# A trained ViT for notebooks 11 and 12, 90 MB, fetched once; without it they use a small stand-in.
WEIGHTS := data/checkpoints/vit_s_focus.onnx
# A .venv whose Python has been removed from the machine is none.
$(shell test -x $(PY) || rm -f $(READY))

# Nothing of the user's own settings may change what a notebook prints.
export PYTHON TORCH_INDEX URL
export JUPYTER_PATH := $(CURDIR)/.venv/share/jupyter
export IPYTHONDIR := $(CURDIR)/.venv/ipython
export MPLCONFIGDIR := $(CURDIR)/.venv/matplotlib
export PYDEVD_DISABLE_FILE_VALIDATION := 1
unexport PYTHONHOME PYTHONPATH PYTHONWARNINGS MPLBACKEND MATPLOTLIBRC

help:
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' Makefile

lab: $(READY) ## open the series in JupyterLab
	@$(PY) -m jupyterlab --LabApp.default_url=/lab/tree/notebooks/00_overview.ipynb \
		$(if $(filter 0,$(shell id -u)),--allow-root)

run: $(READY) $(WEIGHTS) ## run every notebook without a browser; pages in build/index.html
	@$(PY) tools/run_notebooks.py

check: $(READY) ## what to run while editing: ruff, the model, the loop, the rules; under a minute
	@$(PY) tools/test_all.py --quick

test: $(READY) $(WEIGHTS) ## ruff, the unit tests, and every notebook against its stored outputs
	@$(PY) tools/test_all.py

notebooks: $(READY) $(WEIGHTS) ## make the committed outputs of all notebooks again
	@$(PY) tools/run_notebooks.py --inplace

bench: $(READY) ## time our model beside timm, torchvision and vit-pytorch
	@$(PY) benchmarks/throughput.py

pretrained: $(READY) $(WEIGHTS) ## fetch trained ViTs; torchvision's logits beside ours
	@$(PY) tools/pretrained.py

address: $(READY) ## write the public address: make address URL=https://github.com/owner/repository
	@$(PY) tools/set_address.py "$$URL"

clean: ## delete build/ and caches (the environment: rm -r .venv)
	@rm -rf build .pytest_cache .ruff_cache
	@find . -name .venv -prune -o -name __pycache__ -exec rm -rf {} +

$(WEIGHTS): | $(READY)
	@$(PY) -m helpers.weights vit-s14 || true

$(READY): requirements.txt requirements-dev.txt constraints.txt
	@sh tools/setup.sh
