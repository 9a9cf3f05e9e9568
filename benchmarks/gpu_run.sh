#!/usr/bin/env bash
# On a machine with a GPU: builds for it, checks every kernel on it, measures, all in one go.
#
#   benchmarks/gpu_run.sh [FOLDER]      results; default: benchmarks/results/<the GPU's name>
#
# Needs a Python with torch, Triton, cmake, ninja, pybind11 and setuptools, and nvcc; with pytest and
# compute-sanitizer it does more. It installs nothing. From the environment:
#
#   PYTHON          the Python
#   SECONDS_IN_ALL  540; no stage outlasts its share, and what it has by then is kept
#   STAGES          of "build check contracts bench sanitize"; a second run can leave out the first ones
#   SECTIONS        of gpu_bench.py's sections; all
#
# Without a GPU it is a rehearsal: the CPU's kernels, the smallest sizes. The exit code tells of a failed
# build or check, and of a wrong result among the measurements, which are made even where a check fails:
# each kernel is checked again before it is timed. A failed build costs the CUDA kernels alone.
set -uo pipefail
cd "$(dirname "$0")/.."

PYTHON=${PYTHON:-python3}
SECONDS_IN_ALL=${SECONDS_IN_ALL:-540}
STAGES=${STAGES:-build check contracts bench sanitize}
CONTRACTS=tests/kernels/test_cuda_contracts.py
SECONDS=0
export PYTHONUNBUFFERED=1 PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}

gpu=$("$PYTHON" -c 'import torch; c = torch.cuda; print(c.get_device_name() if c.is_available() else "")') || exit
if [ -n "$gpu" ]; then
  capability=$("$PYTHON" -c 'import torch; print("%d.%d" % torch.cuda.get_device_capability())')
  [ "$capability" = 9.0 ] && capability=9.0a  # wgmma and TMA
  export GENIMG_BUILD=cuda TORCH_CUDA_ARCH_LIST=$capability
  name=${gpu,,}
  folder=${1:-benchmarks/results/${name// /-}}
  tiny=() backends=()
else
  export GENIMG_BUILD=cpu
  folder=${1:-build/gpu-rehearsal}
  tiny=(--tiny) backends=(--backend cpu)
  echo 'gpu_run.sh: torch sees no GPU here; this is a rehearsal, and no time of it means anything'
fi
mkdir -p "$folder"
failed=0

# stage NAME LIMIT COMMAND...: into FOLDER/NAME.log, its end shown.
stage() {
  local name=$1 limit=$2 began=$SECONDS code
  shift 2
  echo "== $name (at $SECONDS s, $limit s at most)"
  timeout -k 5 "$limit" "$@" >"$folder/$name.log" 2>&1
  code=$?
  tail -n 25 "$folder/$name.log"
  echo "== $name: exit $code after $((SECONDS - began)) s"
  return $code
}

wanted() { [[ " $STAGES " == *" $1 "* ]]; }

# share PERCENT: of the seconds that are left.
share() { echo $(((SECONDS_IN_ALL - SECONDS) * $1 / 100)); }

if wanted build; then
  # The CPU's kernels for one instruction-set level: nothing of them is looked at here.
  CMAKE_ARGS="${CMAKE_ARGS:-} -DGENIMG_CPU_LEVEL=native" \
    stage build "$(share 45)" "$PYTHON" setup.py -q build_ext --inplace || {
    failed=1
    GENIMG_BUILD=none "$PYTHON" setup.py -q build_ext --inplace
  }
fi
if wanted check; then
  limit=$(share 35)
  # 30 s to import torch and to end: its summary is worth more than one more case.
  stage check "$limit" "$PYTHON" benchmarks/gpu_check.py --in-all "$((limit - 30))" \
    "${backends[@]}" || failed=1
fi
if wanted contracts; then
  if [ -f "$CONTRACTS" ]; then
    stage contracts "$(share 20)" "$PYTHON" -m pytest -q -p no:cacheprovider \
      -o addopts=--import-mode=importlib "$CONTRACTS" || failed=1
  else
    echo "== contracts: there is no $CONTRACTS"
  fi
fi
if wanted bench; then
  left=$((SECONDS_IN_ALL - SECONDS - 45))
  if wanted sanitize; then left=$((left - left / 5)); fi
  # The rest is for ending: a process with a GPU's context takes seconds for that.
  stage bench "$((left + 30))" "$PYTHON" benchmarks/gpu_bench.py "$folder/results.json" \
    --seconds "$left" ${SECTIONS:+--sections $SECTIONS} "${tiny[@]}" || failed=1
  "$PYTHON" benchmarks/gpu_report.py "$folder/results.json" >"$folder/report.md"
  head -n 60 "$folder/report.md"
fi
if wanted sanitize; then
  limit=$((SECONDS_IN_ALL - SECONDS - 5))
  [ "$limit" -gt 40 ] || limit=40
  stage sanitize "$limit" "$PYTHON" benchmarks/gpu_check.py --tools --at-a-time 6 \
    --in-all "$((limit - 25))" "${backends[@]}"
  code=$?
  [ "$code" = 0 ] || [ "$code" = 2 ] || failed=1  # 2: the tool is not on this machine
fi
echo "== all in $folder after $SECONDS s; $([ "$failed" = 0 ] && echo 'nothing failed' || echo 'something FAILED')"
exit "$failed"
