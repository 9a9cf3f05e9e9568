#!/usr/bin/env bash
# On a machine with a GPU: builds for it, checks every kernel on it, measures, all in one go.
#
#   benchmarks/gpu_run.sh [FOLDER]      results; default: benchmarks/results/<the GPU's name>
#
# Needs a Python with torch, Triton, cmake, ninja, pybind11 and setuptools, and nvcc; it installs
# nothing. PYTHON names the Python, SECONDS_IN_ALL the time (540). Without a GPU it is a rehearsal:
# the CPU's kernels, the smallest sizes. The exit code is that of the checks: the measurements are
# made even where a check fails, for each kernel is checked again before it is timed.
set -uo pipefail
cd "$(dirname "$0")/.."

PYTHON=${PYTHON:-python3}
SECONDS_IN_ALL=${SECONDS_IN_ALL:-540}
SECONDS=0
export PYTHONUNBUFFERED=1 PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}

gpu=$("$PYTHON" -c 'import torch; c = torch.cuda; print(c.get_device_name() if c.is_available() else "")') || exit
if [ -n "$gpu" ]; then
  capability=$("$PYTHON" -c 'import torch; print("%d.%d" % torch.cuda.get_device_capability())')
  [ "$capability" = 9.0 ] && capability=9.0a  # wgmma and TMA
  export GENIMG_BUILD=cuda TORCH_CUDA_ARCH_LIST=$capability
  name=${gpu,,}
  folder=${1:-benchmarks/results/${name// /-}}
  tiny=()
else
  export GENIMG_BUILD=cpu
  folder=${1:-build/gpu-rehearsal}
  tiny=(--tiny)
  echo 'gpu_run.sh: torch sees no GPU here; this is a rehearsal, and no time of it means anything'
fi
mkdir -p "$folder"

# stage NAME LIMIT COMMAND...: into FOLDER/NAME.log, its end shown.
stage() {
  local name=$1 limit=$2 began=$SECONDS code
  shift 2
  echo "== $name ($SECONDS s so far)"
  timeout "$limit" "$@" >"$folder/$name.log" 2>&1
  code=$?
  tail -n 15 "$folder/$name.log"
  echo "== $name: exit $code after $((SECONDS - began)) s"
  return $code
}

stage build 200 "$PYTHON" setup.py -q build_ext --inplace || exit

backends=()
[ -n "$gpu" ] || backends=(--backend cpu)
limit=$((SECONDS_IN_ALL / 2 - SECONDS))
[ "$limit" -gt 60 ] || limit=60
stage check "$limit" "$PYTHON" benchmarks/gpu_check.py --seconds "$((limit - 10))" "${backends[@]}"
checked=$?

left=$((SECONDS_IN_ALL - SECONDS - 20))
stage bench $((left + 15)) "$PYTHON" benchmarks/gpu_bench.py "$folder/results.json" \
  --seconds "$left" "${tiny[@]}"
benched=$?
"$PYTHON" benchmarks/gpu_report.py "$folder/results.json" | tee "$folder/report.md" | head -n 40
echo "== all in $folder, $SECONDS s; checks: exit $checked, measurements: exit $benched"
exit $((checked ? checked : benched))
