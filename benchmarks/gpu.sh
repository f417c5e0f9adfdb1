#!/usr/bin/env bash
# Measure training and re-ranking on one GPU, within 15 minutes, and print one table.
#   benchmarks/gpu.sh [RESULTS]        RESULTS is a file of JSON lines, by default gpu-results.jsonl
# DEVICE=cpu SHAPE=tiny DECODER=qwen3-tiny STEPS=4 SLOWER=4 runs the same parts in small shapes, with four times the time.
set -uo pipefail
cd "$(dirname "$0")/.."
export PYTHONPATH="$PWD" HF_HUB_OFFLINE=1
unset TOKENIZERS_PARALLELISM
PYTHON=${PYTHON:-python}
DEVICE=${DEVICE:-cuda} SHAPE=${SHAPE:-electra-base} DECODER=${DECODER:-qwen3-0.6b}
LISTS=${LISTS:-8} PER_LIST=${PER_LIST:-100} QUERIES=${QUERIES:-200} PAIRS=${PAIRS:-4800}
OUT=${1:-gpu-results.jsonl}
[ "$DEVICE" = cpu ] || unset OMP_NUM_THREADS  # beside other work, threads that wait for one another take minutes
: > "$OUT"
failed=0

part() { # SECONDS ARGUMENTS…: one benchmark, whose last line of stdout is its result
  local seconds=$(($1 * ${SLOWER:-1})); shift
  echo "== $*" >&2
  if line=$(timeout "$seconds" "$PYTHON" -m "$@" | tail -n 1) && [ -n "$line" ]; then
    echo "$line" >> "$OUT"
  else
    echo "failed, or longer than $seconds s: $*" >&2
    failed=1
  fi
}

sizes=(--device "$DEVICE" --lists "$LISTS" --per-list "$PER_LIST" --dropout 0 --repeats 1)
part 300 benchmarks.train --utilisation --shape "$SHAPE" "${sizes[@]}"
part 240 benchmarks.train --utilisation --shape "$DECODER" --lora r=32 "${sizes[@]}"
part 150 benchmarks.rerank --device "$DEVICE" --shape "$SHAPE" --queries "$QUERIES" --depth "$PER_LIST" --repeats 2
part 200 benchmarks.train --shape "$SHAPE" --pairs "$PAIRS" "${sizes[@]}"
"$PYTHON" -m benchmarks.gpu_table "$OUT" || failed=1
exit $failed
