#!/usr/bin/env bash
# Install a wheel in an empty environment outside the tree and run tests of ops there, on what was installed.
# Usage: tests/wheel.sh WHEEL. PYTHON is the interpreter, TORCH another version of torch than the pinned one.
set -euo pipefail
wheel=$(realpath "$1")
root=$(cd "$(dirname "$0")/.." && pwd)
if python3 -m zipfile -l "$wheel" | grep -E 'libtorch|libc10'; then
  echo "the wheel packs torch's own libraries in" >&2
  exit 1
fi
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
cp -r "$root/tests/ops" "$root/tests/support" "$place"
"${PYTHON:-$root/.venv/bin/python}" -m venv "$place/venv"
constraints=$root/constraints.txt
if [ -n "${TORCH:-}" ]; then
  constraints=$place/constraints.txt
  { grep -Ev '^(torch|triton)==' "$root/constraints.txt"; echo "torch==$TORCH"; } > "$constraints"
fi
"$place/venv/bin/pip" install -q -c "$constraints" torch "$wheel" pytest hypothesis
cd "$place"
"$place/venv/bin/python" - <<'PY'
import nanonet
from nanonet import backends
assert "venv" in nanonet.__file__, nanonet.__file__
assert backends.served_by("distill_loss", "CPU") == "kernel", backends.MISSING
PY
"$place/venv/bin/python" -m pytest -q --import-mode=importlib -o pythonpath=. ops/test_distill_torch.py ops/test_cohort_linear.py
