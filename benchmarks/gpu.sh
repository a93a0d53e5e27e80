#!/usr/bin/env bash
# Everything that needs a GPU, in under 9 minutes on a bare machine without network:
#
#   OUT=results benchmarks/gpu.sh
#
# Correctness at all shapes, determinism, all benchmarks; a part that fails stops no other, and the script then exits
# non-zero. Needs PyTorch, Triton, einops and jaxtyping; PYTHON names the interpreter. Words go to both parts: cpu=true
# tries the script itself without a GPU.
set -uo pipefail
cd "$(dirname "$0")/.."
OUT=${OUT:-results}
PYTHON=${PYTHON:-python3}
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
mkdir -p "$OUT"
failed=()

part() { # name, seconds at most, command
    local name=$1 seconds=$2
    shift 2
    echo "== $name"
    timeout --kill-after=5 "$seconds" "$@" 2>&1 | tee "$OUT/$name.log" | tail -n 60
    [ "${PIPESTATUS[0]}" -eq 0 ] || failed+=("$name")
}

part versions 60 "$PYTHON" -c 'import einops, jaxtyping, torch, triton
print(torch.__version__, triton.__version__, torch.backends.cudnn.version())
print(torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU")'
part check_kernels 200 "$PYTHON" benchmarks/check_kernels.py "out=$OUT" "$@"
part kernels 270 "$PYTHON" benchmarks/kernels.py "out=$OUT" seconds=230 "$@"

echo "== ${#failed[@]} of 3 parts failed${failed[*]:+: ${failed[*]}}"
[ ${#failed[@]} -eq 0 ]
