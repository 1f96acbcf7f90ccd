# make demo | ui | test | bench NAME=... | lint -- each works alone, on a fresh clone with Python 3.10+, git and make.
# COMFYUI_PATH=... behind any of them takes that ComfyUI instead of the one fetched here.
PYTHON ?= python3
INSTALL := $(PYTHON) tests/testhost/install.py
VENV = $(shell COMFYUI_PATH='$(COMFYUI_PATH)' $(INSTALL) --which 2>/dev/null)

.PHONY: help demo ui test bench lint

help:
	@sed -n 1p Makefile

demo:           # a prompt becomes a video, through a real ComfyUI server
	@$(INSTALL)
	@PYTHONPATH=tests $(VENV) -m testhost.demo

ui:             # the same server, left running with its page open on the template
	@$(INSTALL)
	@PYTHONPATH=tests $(VENV) -m testhost.demo --ui

test:           # the whole suite: unit, host, server, browser; two processes of one thread do more on two cores than one of two
	@$(INSTALL) --tests --browser
	@OMP_NUM_THREADS=1 $(VENV) -m pytest -n 2 --dist loadfile

bench:          # one benchmark of tests/bench: make -s bench NAME=parity
	@$(INSTALL) --tests >&2
	@$(VENV) -m frozen_diffusion.cli bench $(NAME)

lint:
	@$(INSTALL) --tests
	@$(VENV) -m ruff check .
