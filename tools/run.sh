#!/usr/bin/env bash
# Sets up a virtual environment beside this repository when there is none, then runs one of:
#   tools/run.sh demo [OPTIONS]   prune the embedded classifier with snacs
#   tools/run.sh test [OPTIONS]   format, lint, types and the tests; options go to pytest
set -euo pipefail
cd "$(dirname "$0")/.."
venv="${ONNXPRUNE_VENV:-.venv}"
stamp="$venv/.installed-$(cksum <pyproject.toml | cut -d' ' -f1)"
if [ ! -e "$stamp" ]; then
  python3 -m venv "$venv"
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check 'torch==2.13.0'
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
  touch "$stamp"
fi
export PATH="$PWD/$venv/bin:$PATH"
case "${1:-}" in
demo)
  shift
  onnxprune models/digits.onnx "${ONNXPRUNE_OUT:-pruned.onnx}" --method snacs --data digits "$@"
  ;;
test)
  shift
  ruff format --check .
  ruff check .
  pyright
  python -m pytest -n auto --dist worksteal "$@"
  ;;
*)
  sed -n '2,4s/^# //p' "$0" >&2
  exit 2
  ;;
esac
