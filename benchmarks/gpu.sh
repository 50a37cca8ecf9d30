#!/usr/bin/env bash
# Build, test, sanitize and benchmark on a machine with a GPU, in under nine minutes and without a network. It needs
# torch with CUDA, Triton, nvcc, pybind11, cmake and ninja. Wheels in ./wheels (Liger-Kernel's, say) are installed first.
#
#     benchmarks/gpu.sh          logs and JSON lines into $OUT, or benchmarks/results
#
# Every part has its own time limit, and the next one runs whatever became of it; the summary comes last.
set -uo pipefail
cd "$(dirname "$0")/.."
export OUT=${OUT:-benchmarks/results} PYTHONUNBUFFERED=1
mkdir -p "$OUT"
python=${PYTHON:-python3}
summary=()

# part NAME SECONDS COMMAND...: its output goes to $OUT/gpu-NAME.log, and the end of it here where it failed.
part() {
  local name=$1 limit=$2 log=$OUT/gpu-$1.log start=$SECONDS status=0
  shift 2
  timeout -k 5 "$limit" "$@" >"$log" 2>&1 || status=$?
  case $status in
    0) summary+=("$name: ok, $((SECONDS - start)) s, $(tail -n 1 "$log" | cut -c 1-100)") ;;
    124 | 137) summary+=("$name: STOPPED after $limit s") ;;
    *) summary+=("$name: FAILED ($status), see $log") ;;
  esac
  if [ "$status" != 0 ]; then tail -n 25 "$log"; fi
  return "$status"
}

capability=$("$python" -c 'import torch; print("%d%d" % torch.cuda.get_device_capability())') || capability=90
case $capability in 9? | 1??) arch=${capability}a ;; *) arch=$capability ;; esac

machine() {
  nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader
  nvcc --version | tail -n 1
  git log -1 --format='commit %h' 2>/dev/null
  "$python" --version
  "$python" -c 'import torch, triton; print("torch", torch.__version__, "triton", triton.__version__)'
}
install() {
  if compgen -G 'wheels/*.whl' >/dev/null; then
    "$python" -m pip install -q --no-index --no-deps --no-compile --upgrade wheels/*.whl || echo 'the wheels were not installed'
  fi
  NANONET_CUDA=1 NANONET_CUDA_ARCHES=$arch "$python" -m pip install -v --no-deps --no-build-isolation -e . &&
    "$python" -c 'import nanonet; from nanonet.backends import cuda; print(cuda.build_info())'
}
export -f machine install
export python arch

# The first kernels of each family, on shapes that a sanitizer finishes: unaligned rows, masked rows, bad labels.
small='test_strided or test_no_rows or (test_absent_and_masked and not 131072) or (test_divergences and 2-5-kl)'

part machine 60 bash -c machine
cat "$OUT/gpu-machine.log"
part install 120 bash -c install
part tests 80 "$python" -m pytest -q --import-mode=importlib -p no:cacheprovider tests/gpu
part kernels 100 "$python" -m pytest -q --import-mode=importlib -p no:cacheprovider tests/kernels --ignore tests/kernels/test_compile.py
part memcheck 45 compute-sanitizer --tool memcheck --error-exitcode 9 "$python" -m pytest -q --import-mode=importlib \
  -p no:cacheprovider tests/gpu -k "$small"
part racecheck 45 compute-sanitizer --tool racecheck --error-exitcode 9 "$python" -m pytest -q --import-mode=importlib \
  -p no:cacheprovider tests/gpu -k 'test_no_rows or (test_absent_and_masked and not 131072)'
bench() {
  "$python" -m nanonet bench --device cuda --dtypes bfloat16 --json >"$OUT/gpu.jsonl"
  "$python" -m nanonet bench --linear --device cuda --dtypes bfloat16 --json >>"$OUT/gpu.jsonl"
}
export -f bench
part bench 120 bash -c bench

table() {
  "$python" - "$OUT/gpu.jsonl" <<'PY'
import json
import sys

records = [json.loads(line) for line in open(sys.argv[1]) if line.startswith("{")]
for r in records:
    shape = " ".join(f"{name}={size}" for name, size in r.get("shape", {}).items())
    own = " ".join(r[name] for name in ("weight", "tuning", "phase") if name in r)
    share = "" if r["floor_fraction"] is None else f"{100 * r['floor_fraction']:.0f}% of the copy"
    print(f"{r['implementation']:<18} {r['dtype']:<9} {shape:<28} {own:<28} {r['p50_ms']:>9.4g} ms  {share}")
PY
}
if [ -s "$OUT/gpu.jsonl" ]; then table || echo "no table: $OUT/gpu.jsonl is not what was expected"; fi
printf '%s\n' "${summary[@]}"
