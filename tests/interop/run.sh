#!/usr/bin/env bash
# Holds `quant` against real llama.cpp: each check prints its own table, and the last table says how each went.
# 1 if one failed. A check that cannot run here is said to be skipped; it fails nothing. speed.py is a benchmark: run it by hand.
# QUANT_MODELS: a folder of real models, each NAME/ and, where there is one, the NAME.gguf it was made from.
set -uo pipefail
cd "$(dirname "$0")/../.."
here=tests/interop

cargo build --release --locked || exit 1
export QUANT_BIN="${QUANT_BIN:-$PWD/target/release/quant}"

command -v python3 >/dev/null || { echo "interop: skipped: no python3"; exit 0; }
printf '\n== bounds.py\n'
python3 $here/bounds.py || exit 1

skip_all() {
    echo "interop: skipped, nothing was compared with llama.cpp: $1"
    exit 0
}
python=$(python3 $here/env.py)
case $? in
    0) ;;
    77) skip_all "the reason is above" ;;
    *) echo "interop: $here/env.py failed" && exit 1 ;;
esac

table="" all=0 failed=0 skipped=0
check() {
    local result=ok start=$SECONDS
    printf '\n== %s\n' "$1"
    "$python" "$here/$1" "${@:2}"
    case $? in
        0) ;;
        77) result=skipped skipped=$((skipped + 1)) ;;
        *) result=FAILED failed=$((failed + 1)) ;;
    esac
    all=$((all + 1))
    table+=$(printf '%-8s %4d s  %s' $result $((SECONDS - start)) "$1")$'\n'
}
check recipe_types.py --quant "$QUANT_BIN"
check byte_identity.py
check families.py
check logits.py
check engine.py
check probe.py
check tasks.py
check calibrate.py
check artifacts.py
check exl2.py
check kill.py
check cubin.py

printf '\n== interop\n%s' "$table"
echo "interop: $all checks, $((all - failed - skipped)) ok, $failed failed, $skipped skipped"
[ $failed = 0 ]
