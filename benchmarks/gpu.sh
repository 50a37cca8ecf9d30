#!/usr/bin/env bash
# Build, check, measure, test and sanitize on a machine with a GPU (an H100, an H200 or another), in under nine minutes
# and without a network. It needs torch with CUDA, Triton, nvcc, pybind11, cmake and ninja. Wheels in ./wheels
# (Liger-Kernel's, say) are installed first.
#
#     benchmarks/gpu.sh          gpu.log, gpu.jsonl and gpu-summary.txt into $OUT, or benchmarks/results
#     PARTS="machine install kernels compiled" benchmarks/gpu.sh          these parts alone
#
# It begins with `nanonet check`: of kernels that do not pass none is measured, plain torch is in their place. Every line
# names the card. Every part has its own time limit and a share of what is left of the whole, and the next one runs
# whatever became of it. The most telling parts come first. A benchmark checks its result before it times it.
set -uo pipefail
cd "$(dirname "$0")/.."
export OUT=${OUT:-benchmarks/results} PYTHONUNBUFFERED=1
mkdir -p "$OUT"
python=${PYTHON:-python3}
# pip's cmake and ninja lie beside the interpreter, which may be a link from elsewhere
PATH=$("$python" -c 'import sysconfig; print(sysconfig.get_path("scripts"))'):$PATH
card=$("$python" -c 'import torch; print(torch.cuda.get_device_name())') || card='no GPU'
deadline=${DEADLINE:-520} # seconds for everything but the table
for file in gpu-summary.txt gpu.log gpu.jsonl; do : >"$OUT/$file"; done

# part NAME SECONDS COMMAND...: its output goes to $OUT/gpu.log, and the end of it here where it failed.
part() {
  local name=$1 limit=$2 start=$SECONDS status=0 said log
  if [[ " ${PARTS:-$name} " != *" $name "* ]]; then return; fi
  log=$OUT/gpu-part.log # what it has said is kept even where this script is stopped from outside
  shift 2
  if ((limit > deadline - SECONDS)); then limit=$((deadline - SECONDS)); fi
  if ((limit < 5)); then
    said="$name: NOT RUN, no time is left"
  else
    # an interrupt first: pytest and the benchmark then say how far they came
    timeout -s INT -k 5 "$limit" "$@" >"$log" 2>&1 || status=$?
    case $status in
      0) said="$name: ok, $((SECONDS - start)) s, $(tail -n 1 "$log" | cut -c 1-100)" ;;
      124 | 137) said="$name: STOPPED after $limit s, $(tail -n 1 "$log" | cut -c 1-100)" ;;
      *) said="$name: FAILED ($status) after $((SECONDS - start)) s, see gpu.log" ;;
    esac
    if [ "$status" != 0 ]; then tail -n 25 "$log"; fi
    { echo "== $card: $name" && tail -n 2000 "$log"; } >>"$OUT/gpu.log"
  fi
  rm -f "$log"
  echo "$card: $said" | tee -a "$OUT/gpu-summary.txt"
  return "$status"
}

capability=$("$python" -c 'import torch; print("%d%d" % torch.cuda.get_device_capability())') || capability=90
case $capability in 9? | 1??) arch=${capability}a ;; *) arch=$capability ;; esac
NANONET_COMMIT=${NANONET_COMMIT:-$(git rev-parse --short HEAD 2>/dev/null)}

machine() {
  nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader
  nvcc --version | tail -n 1
  echo "commit $NANONET_COMMIT"
  "$python" --version
  "$python" -c 'import torch, triton; print("torch", torch.__version__, "triton", triton.__version__)'
  for tool in git nvcc ninja cmake compute-sanitizer; do command -v "$tool" || echo "no $tool"; done
}
install() {
  if compgen -G 'wheels/*.whl' >/dev/null; then
    "$python" -m pip install -q --no-index --no-deps --no-compile --upgrade wheels/*.whl || echo 'the wheels were not installed'
  fi
  export NANONET_CUDA=1 NANONET_CUDA_ARCHES=$arch
  local built=0
  "$python" -m pip install -v --no-deps --no-build-isolation -e . || {
    built=1 # without the CUDA kernels Triton's serve, and without a compiler they still do: the parts that follow say how well
    NANONET_CUDA=0 "$python" -m pip install -v --no-deps --no-build-isolation -e . ||
      NANONET_CUDA=0 CXX=none "$python" -m pip install -v --no-deps --no-build-isolation -e .
  }
  "$python" -c 'import nanonet; from nanonet.backends import cuda; print(cuda.build_info())' && return "$built"
}
bench() { "$python" -m nanonet bench --device cuda --dtypes bfloat16 --json "$@" >>"$OUT/gpu.jsonl"; }
tune() { "$python" -m "nanonet.benchmarks.tune_$1" --seconds "$2" >>"$OUT/gpu.jsonl"; } # its table of the fastest goes to the log
# Whole training steps; of an encoder with random weights, which need not be fetched.
step() {
  "$python" benchmarks/blank_encoder.py "$work/encoder" &&
    bench --step --teacher "$work/encoder" --students 4,1 --tunings bias,lora --batch 32 --no-memory
}
export -f machine install bench tune step
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export python arch work NANONET_COMMIT

pytest=("$python" -m pytest -v -rf --no-header --import-mode=importlib -p no:cacheprovider)
workers=()
if "$python" -c 'import xdist' 2>/dev/null; then workers=(-n 14); fi
# The kernels of each family on shapes that a sanitizer finishes: unaligned rows, masked rows, two sweeps, a cluster.
# Only our kernels are watched. Without torch's cache of memory every tensor is an allocation of its own, past whose end a write is seen.
small='test_strided or test_no_rows or test_in_a_cluster or (test_absent_and_masked and not 131072)'
bare=(env PYTORCH_NO_CUDA_MEMORY_CACHING=1 PYTEST_DISABLE_PLUGIN_AUTOLOAD=1)
sanitizer=(compute-sanitizer --error-exitcode 9 --report-api-errors no --kernel-name kns=distill)

part machine 30 bash -c machine
cat "$OUT/gpu.log"
part install 180 bash -c install
# stopped from outside it keeps no result: the suites must not begin it again
part check 150 "$python" -m nanonet check --device cuda
case $? in 124 | 137) export NANONET_GPU_KERNELS=0 ;; esac
part loss 70 bash -c 'bench --eager-only'
part linear 60 bash -c 'bench --linear'
part tests 70 "${pytest[@]}" "${workers[@]}" tests/gpu
part compiled 60 bash -c 'bench --shapes 4x8192x128256,4x1024x100'
part memcheck 50 "${bare[@]}" "${sanitizer[@]}" --tool memcheck "${pytest[@]}" --confcutdir tests/gpu tests/gpu -k "$small"
part tune-loss 40 bash -c 'tune distill 28'
part tune-linear 60 bash -c 'tune linear 45'
part racecheck 50 "${bare[@]}" "${sanitizer[@]}" --tool racecheck "${pytest[@]}" --confcutdir tests/gpu tests/gpu -k "$small"
part step 90 bash -c step
part kernels 90 "${pytest[@]}" "${workers[@]}" tests/kernels --ignore tests/kernels/test_compile.py

table() {
  "$python" - "$OUT/gpu.jsonl" <<'PY'
import json
import sys

for line in open(sys.argv[1]):
    try:
        r = json.loads(line)
    except ValueError:  # cut off where the time was over
        continue
    shape = " ".join(f"{name}={size}" for name, size in r.get("shape", {}).items())
    own = " ".join(r[name] for name in ("weight", "tuning", "phase") if name in r)
    share = "" if r["floor_fraction"] is None else f"{100 * r['floor_fraction']:.0f}% of the copy"
    print(f"{r['device']}  {r['implementation']:<18} {r['dtype']:<9} {shape:<28} {own:<28} {r['p50_ms']:>9.4g} ms  {share}")
PY
}
if [ -s "$OUT/gpu.jsonl" ]; then table || echo "no table: $OUT/gpu.jsonl is not what was expected"; fi
cat "$OUT/gpu-summary.txt"
