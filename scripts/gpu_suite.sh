#!/usr/bin/env bash
# All that is to be seen on a machine with an NVIDIA GPU, in one command and under ten minutes:
#
#     bash scripts/gpu_suite.sh [STAGE...]     PYTHON=... chooses an interpreter, OUT=... a folder for what is written
#
# The stages, all of them unless some are named:
#   facts      versions; cuBLASLt; how exact float32 is; what a node of a graph costs
#   graphs     captured steps beside the launches that they are made of, many steps a launch, resume at any step
#   battery    all other tests that need a GPU
#   sanitizer  a small run under compute-sanitizer: memcheck and racecheck
#   bench      training steps beside those of PyTorch (eager, compiled, graphed) and JAX
#
# Uses the Python at hand where it has CuPy,
# else makes an environment in .venv-gpu. A stage that cannot run says why; the last line sums up, and the exit code is
# the number of stages that failed.
set -uo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
OUT=${OUT:-$(mktemp -d)}
mkdir -p "$OUT"
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1 PIP_DISABLE_PIP_VERSION_CHECK=1
wanted=" ${*:-facts graphs battery sanitizer bench} "
results=()
failures=0

# stage NAME LIMIT COMMAND...: run it for at most LIMIT seconds; what it prints goes to the screen and to OUT/NAME.log
stage() {
  local name=$1 limit=$2 began=$SECONDS code
  shift 2
  printf '\n=== %s (after %d s)\n' "$name" "$SECONDS"
  timeout "$limit" "$@" 2>&1 | tee "$OUT/$name.log"
  code=${PIPESTATUS[0]}
  if [ "$code" -eq 0 ]; then verdict=passed
  elif [ "$code" -eq 124 ]; then verdict="stopped after $limit s"
  else verdict="failed (exit $code)"; fi
  [ "$code" -eq 0 ] || failures=$((failures + 1))
  results+=("$name|$verdict|$((SECONDS - began))")
}

skip() {
  printf '\n=== %s\nskipped: %s\n' "$1" "$2"
  results+=("$1|skipped: $2|0")
}

wants() { [[ $wanted == *" $1 "* ]]; }

has() { "$python" -c "import $1" 2>/dev/null; }

# Python: the one at hand where it has all that is needed, else an environment of our own.
python=${PYTHON:-}
if [ -z "$python" ]; then
  python=.venv-gpu/bin/python
  for each in python3 python; do
    if "$each" -c 'import cupy, h5py, click, tqdm, pydantic, tomli_w, pytest, hypothesis' 2>/dev/null; then
      python=$(command -v "$each")
      break
    fi
  done
fi
if [ ! -x "$python" ]; then
  echo "making an environment in .venv-gpu"
  python3 -m venv .venv-gpu && .venv-gpu/bin/pip install --quiet --editable ".[cuda13,test]" ||
    { echo "no environment: pip could not install gpbackprop[cuda13,test]; what it says stands above"; exit 1; }
  for package in torch "jax[cuda13]"; do
    timeout 200 .venv-gpu/bin/pip install --quiet "$package" || echo "$package: left out of the bench, pip could not install it"
  done
fi
echo "$("$python" --version), $python; what is written goes to $OUT"
command -v nvidia-smi >/dev/null && nvidia-smi --query-gpu=name,memory.total,driver_version,clocks.sm --format=csv

why=$("$python" -c '
import sys
from gpbackprop.backend import select
from gpbackprop.errors import DeviceError
try:
    print(select("cuda").description, file=sys.stderr)
except DeviceError as error:
    print(error)
')
if [ -n "$why" ]; then
  for name in facts graphs battery sanitizer bench; do ! wants $name || skip "$name" "$why"; done
else
  ! wants facts || stage facts 60 "$python" scripts/gpu_facts.py --json "$OUT/facts.json"
  ! wants graphs || stage graphs 170 "$python" -m pytest -q -m cuda -p no:cacheprovider tests/test_cuda_graphs.py tests/test_cuda_lt.py
  ! wants battery || stage battery 130 "$python" -m pytest -q -m cuda -p no:cacheprovider --ignore tests/test_cuda_graphs.py --ignore tests/test_cuda_lt.py tests

  cat >"$OUT/small.py" <<'PYTHON'
import gpbackprop as gp

layers = [gp.Dense(32, activation="relu"), gp.Dropout(0.2), gp.Dense(10)]
trainer = gp.Trainer(
    gp.Chain(*layers), gp.SoftmaxCrossEntropy(), gp.Adam(0.01), gp.data.load("digits"), device="cuda", population=2,
    batch_size=256,
)
print(trainer.fit(2)[-1])
PYTHON
  if ! wants sanitizer; then :
  elif command -v compute-sanitizer >/dev/null; then
    for tool in memcheck racecheck; do
      stage "sanitizer-$tool" 45 compute-sanitizer --tool "$tool" --error-exitcode 9 "$python" "$OUT/small.py"
    done
  else
    skip sanitizer "compute-sanitizer is not on the PATH; it comes with the CUDA toolkit"
  fi

  left=$((585 - SECONDS))
  if ! wants bench; then :
  elif [ "$left" -gt 60 ]; then
    for name in torch jax; do has $name || echo "bench: $name is not installed and takes no part"; done
    stage bench "$left" "$python" scripts/bench.py --device cuda --measure step --rounds 5 \
      --rivals torch,compile,graph,jax,vmap,products --json "$OUT/bench.json"
  else
    skip bench "only $left s of the ten minutes are left"
  fi
fi

printf '\n%-20s %8s  %s\n' stage seconds outcome
for row in "${results[@]}"; do
  IFS='|' read -r name verdict took <<<"$row"
  printf '%-20s %8s  %s\n' "$name" "$took" "$verdict"
done
printf '%s\n' "${results[@]}" | "$python" -c '
import json, pathlib, sys
rows = [line.rstrip("\n").split("|") for line in sys.stdin]
stages = [{"stage": name, "outcome": outcome, "seconds": int(took)} for name, outcome, took in rows]
path = pathlib.Path(sys.argv[1])
path.write_text(json.dumps({"stages": stages}, indent=2) + "\n")
print("written:", ", ".join(sorted(str(file) for file in path.parent.iterdir())))
' "$OUT/suite.json"
exit "$failures"
