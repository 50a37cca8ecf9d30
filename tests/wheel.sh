#!/usr/bin/env bash
# Install a wheel in an empty environment outside the tree and run tests of ops there, on what was installed.
# Usage: tests/wheel.sh WHEEL. The environment sees the libraries of the calling one, but not its nanonet.
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
"$root/.venv/bin/python" -m venv "$place/venv"
"$place/venv/bin/pip" install -q -c "$root/constraints.txt" torch "$wheel" pytest hypothesis
cd "$place"
"$place/venv/bin/python" - <<'PY'
import nanonet
from nanonet import backends
assert "venv" in nanonet.__file__, nanonet.__file__
assert backends.served_by("distill_loss", "CPU") == "kernel", backends.MISSING
PY
"$place/venv/bin/python" -m pytest -q --import-mode=importlib -o pythonpath=. ops/test_distill_torch.py ops/test_cohort_linear.py
