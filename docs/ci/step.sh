#!/bin/sh
# One step of CI: prunes MODEL, writes reports and a summary, and fails when a gate is missed or a stored report is better.
#
#   MODEL      the .onnx file to prune
#   OUT        where the result goes                      (default: pruned.onnx)
#   ARGUMENTS  options of onnxprune, gates among them     (default: --method l1 --target macs=0.5)
#   BASELINE   a stored report.json to compare with       (default: none; a file that is not there yet is passed over)
#   REPORTS    folder for report.json, .md and .html      (default: onnxprune-report)
#   SUMMARY    file that the Markdown is appended to      (default: none)
#
# Exit codes are those of onnxprune: 0 done, 1 a gate was missed or something became worse, 2 bad input, 3 not proven.
set -euf # -f: ARGUMENTS are split at spaces, but patterns in them are left to onnxprune

MODEL=${MODEL:?name the .onnx file to prune in MODEL}
OUT=${OUT:-pruned.onnx}
ARGUMENTS=${ARGUMENTS:---method l1 --target macs=0.5}
REPORTS=${REPORTS:-onnxprune-report}
SUMMARY=${SUMMARY:-/dev/null}
mkdir -p "$REPORTS"
log=$REPORTS/log.txt

# fail CODE FILE: appends the end of FILE to the summary and ends the step.
fail() {
  printf '**onnxprune: failed with exit code %s.**\n\n```\n' "$1" >>"$SUMMARY"
  tail -n 20 "$2" >>"$SUMMARY"
  printf '```\n' >>"$SUMMARY"
  exit "$1"
}

code=0
# shellcheck disable=SC2086
onnxprune "$MODEL" "$OUT" $ARGUMENTS --report "$REPORTS/report.json" --report "$REPORTS/report.md" \
  --report "$REPORTS/report.html" 2>"$log" || code=$?
cat "$log" >&2
[ "$code" -eq 0 ] || fail "$code" "$log"
cat "$REPORTS/report.md" >>"$SUMMARY"

if [ -n "${BASELINE:-}" ] && [ -f "$BASELINE" ]; then
  onnxprune compare-reports "$BASELINE" "$REPORTS/report.json" >"$REPORTS/comparison.txt" 2>&1 || code=$?
  cat "$REPORTS/comparison.txt"
  [ "$code" -eq 0 ] || fail "$code" "$REPORTS/comparison.txt"
fi
