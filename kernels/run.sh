#!/usr/bin/env bash
# On a machine with a card, without Rust or network: holds the card to the CPU, then measures. Prints what belongs into RESULTS.md.
#   ./run.sh [QUANT] [DEVICE] [MODEL TEXT]
# With a model's folder and a text it also times whole commands, each with the most of the card's memory that was in use.
set -uo pipefail
quant=${1:-./quant} device=${2:-cuda:0} model=${3:-} text=${4:-}

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
[[ -n $model && -n $text ]] || exit 0

out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
# timed NAME COMMAND...: seconds, and MiB of the card that were used at most.
timed() {
    local name=$1 start watch went=done
    shift
    nvidia-smi --query-gpu=memory.used --format=csv,noheader,nounits -lms 100 >"$out/memory" 2>/dev/null &
    watch=$!
    start=$(date +%s.%N)
    "$@" >"$out/said" 2>&1 || went=FAILED
    printf '| %s | %s | %.1f | %s |\n' "$name" "$went" "$(bc -l <<<"$(date +%s.%N) - $start")" "$(sort -n "$out/memory" | tail -n 1)"
    kill $watch 2>/dev/null
    [[ $went = done ]] || tail -n 5 "$out/said"
}
on=(--device "$device" --quiet)
amount=(--data "$text" --rows 128 --length 2048)
echo
echo '### whole commands'
echo "$model, 128 x 2048 tokens"
echo
echo '| what | went | s | MiB |'
echo '|---|---|---:|---:|'
timed 'calibrate' "$quant" calibrate "$model" "${amount[@]}" -o "$out/plain.st" "${on[@]}"
timed 'q4_k_m on it' "$quant" convert "$model" --to q4_k_m --stats "$out/plain.st" -o "$out/m.gguf" "${on[@]}"
timed 'calibrate --gram' "$quant" calibrate "$model" "${amount[@]}" --gram -o "$out/gram.st" "${on[@]}"
for method in gptq awq awq+gptq; do
    timed "gptq by $method" "$quant" convert "$model" --to gptq --method $method --stats "$out/gram.st" -o "$out/$method" "${on[@]}"
done
timed 'calibrate --gram --vram 24GB' "$quant" calibrate "$model" "${amount[@]}" --gram -o "$out/gram.st" --vram 24GB "${on[@]}"
timed 'gptq by gptq, --vram 24GB' "$quant" convert "$model" --to gptq --method gptq --stats "$out/gram.st" -o "$out/gptq" --vram 24GB "${on[@]}"
timed 'eval, 49 x 2048 tokens' "$quant" eval "$out/m.gguf" --reference "$model" --data "$text" --protocol gptq-2048 --chunks 49 "${on[@]}"
