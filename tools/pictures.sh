#!/usr/bin/env bash
# Makes the pictures of docs/images that show a report and a notebook; needs chromium, and jupyter-nbconvert with ipykernel.
#   tools/pictures.sh report | notebook
set -euo pipefail
cd "$(dirname "$0")/.."
images=$PWD/docs/images
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# shot NAME WIDTH HEIGHT PAGE [OPTIONS]: a picture of PAGE as a browser shows it.
shot() {
  chromium --headless=new --no-sandbox --disable-gpu --hide-scrollbars --user-data-dir="$work/profile" \
    --screenshot="$images/$1.png" --window-size="$2,$3" "${@:5}" "file://$4" >/dev/null 2>&1
  python - "$images/$1.png" <<'PY'
import sys
from PIL import Image
Image.open(sys.argv[1]).convert("RGB").quantize(64).save(sys.argv[1], optimize=True)
PY
}

case "${1:-}" in
report)
  python -m onnxprune models/digits.onnx "$work/small.onnx" --data digits --report "$work/report.html"
  shot report-desktop-light 1100 2500 "$work/report.html" --blink-settings=preferredColorScheme=1
  shot report-desktop-dark 1100 2500 "$work/report.html" --blink-settings=preferredColorScheme=0
  shot report-phone-light 390 3000 "$work/report.html" --blink-settings=preferredColorScheme=1
  shot report-phone-dark 390 3000 "$work/report.html" --blink-settings=preferredColorScheme=0
  ;;
notebook)
  python -m nbconvert --to html --execute docs/notebooks/vision.ipynb --output-dir "$work" --output vision
  shot notebook 900 1500 "$work/vision.html"
  ;;
*)
  sed -n '2,3s/^# //p' "$0" >&2
  exit 2
  ;;
esac
