#!/usr/bin/env bash
# On a machine with a card, without Rust or network: holds the card to the CPU, then measures. Prints what belongs into RESULTS.md.
#   ./run.sh [QUANT] [DEVICE]
set -uo pipefail
quant=${1:-./quant} device=${2:-cuda:0}

echo "## $(date -u +%F)"
echo
echo '```'
"$quant" --version
"$quant" devices
nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.sm --format=csv 2>/dev/null
echo '```'
echo
echo '### selftest'
echo '```'
for precision in exact f32 tf32 bf16; do
    echo "precision $precision"
    if report=$("$quant" selftest --device "$device" --precision $precision 2>&1); then
        tail -n 1 <<<"$report"
    else
        # All of it: a failure is what this is for.
        echo "$report"
    fi
done
echo '```'
echo
echo '### benchmarks'
echo '```'
"$quant" selftest --device "$device" --bench
echo '```'
if command -v compute-sanitizer >/dev/null; then
    echo
    echo '### compute-sanitizer'
    echo '```'
    for tool in memcheck racecheck synccheck initcheck; do
        echo "$tool: $(compute-sanitizer --tool "$tool" "$quant" selftest --device "$device" 2>&1 | tail -n 1)"
    done
    echo '```'
fi
