#!/usr/bin/env bash
# The CUDA engine on a machine with an NVIDIA GPU, in one command: is it right, and how fast is it?
#
#     benchmarks/gpu_check.sh correctness    every operator test over backend "cuda"; a comparison with float64
#     benchmarks/gpu_check.sh speed          times, memory and latency of the engine; its kernels one by one
#     benchmarks/gpu_check.sh tune           variants of the kernels side by side
#     benchmarks/gpu_check.sh gsplat         builds gsplat from its sources, then both interleaved in one process
#     benchmarks/gpu_check.sh train          tabletop and dino from end to end
#     benchmarks/gpu_check.sh sanitizer      compute-sanitizer on small images
#     benchmarks/gpu_check.sh ncu            what the hottest kernels reach of the card's rates
#     benchmarks/gpu_check.sh all            all of it, gsplat's build in the background
#
# Several parts may be named. Runs from the checkout: nothing is installed, the Python is $PYTHON (python3). Needed
# there: torch with CUDA, cuda-bindings, NVRTC, pytest, hypothesis. JSON goes to $OUT when that is set (with
# the logs as logs.tgz), else to benchmarks/results/. Every part has its own time limit, and a table at its end.
#
#     FEATURESPLAT_GSPLAT_SDIST   gsplat-1.5.3.tar.gz (default: the one in .gsplat/)
#     FEATURESPLAT_GSPLAT_BUILT   archive of a built gsplat for that machine (default: .gs/gs.tar.xz), saves the build
#     FEATURESPLAT_SCENES         folder with tabletop/ and dino/ (default: .scenes/)
#     FEATURESPLAT_WHEELS         folder of wheels to use (default: .whl/): plyfile tyro rich viser and what they need
#     REPS, DIMS_FEW, DIMS_MANY   repetitions and channel counts of the comparison; TRAIN_SCENES, TRAIN_CONFIG; NCU_DIMS
#     FEATURESPLAT_COMMIT         what to call this version where there is no git
set -uo pipefail
cd "$(dirname "$0")/.."
root=$PWD
python=${PYTHON:-python3}
results=${OUT:-$root/benchmarks/results}
work=${FEATURESPLAT_WORK:-${TMPDIR:-/tmp}/featuresplat-gpu-check}
sdist=${FEATURESPLAT_GSPLAT_SDIST:-$(ls .gsplat/gsplat-*.tar.gz 2>/dev/null | head -1)}
scenes=${FEATURESPLAT_SCENES:-$root/.scenes}
built=${FEATURESPLAT_GSPLAT_BUILT:-$root/.gs/gs.tar.xz}
wheels=${FEATURESPLAT_WHEELS:-$root/.whl}
logs=$work/logs
mkdir -p "$results" "$work" "$logs"
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
failed=()

say() { printf '\n== %s (%ss)\n' "$*" "$SECONDS"; }
# limited SECONDS LABEL COMMAND...: runs it, and notes a failure
limited() {
  local limit=$1 label=$2
  shift 2
  timeout --kill-after=10 "$limit" "$@"
  local code=$?
  [ $code -eq 0 ] || { failed+=("$label"); printf '%s ended with code %s%s\n' "$label" $code \
    "$([ $code -ge 124 ] && printf ' (its limit is %s s)' "$limit")"; }
  return $code
}

use_wheels() {
  [ -d "$work/site" ] || { ls "$wheels"/*.whl >/dev/null 2>&1 && "$python" -m pip install -q --no-index --no-deps \
    --no-compile --no-cache-dir --upgrade --target "$work/site" "$wheels"/*.whl; }
  [ -d "$work/site" ] && export PYTHONPATH=$PYTHONPATH:$work/site
}

machine() {
  nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader 2>/dev/null
  "$python" - <<'PY'
import torch
from featuresplat.raster import _nvrtc, _nvrtc_compile
print("torch", torch.__version__, "NVRTC", *_nvrtc_compile.version(), "| CUDA engine:", _nvrtc.unavailable() or "ready")
PY
}

correctness() {
  say correctness
  limited 100 "small images against float64" "$python" benchmarks/gpu_once.py >"$logs/gpu-once.txt" 2>&1
  tail -22 "$logs/gpu-once.txt" | cut -c1-300
  local files=(tests/raster/test_contract.py tests/raster/test_queries.py tests/raster/test_fuzz.py)
  [ -f tests/raster/test_cuda.py ] && files+=(tests/raster/test_cuda.py)
  limited 230 "operator tests" "$python" -m pytest "${files[@]}" -k cuda -n 12 -q -p no:cacheprovider -p no:benchmark --maxfail=25 \
    --tb=short -o addopts= --durations=5 >"$logs/gpu-tests.log" 2>&1
  grep -E "^(FAILED|ERROR)" "$logs/gpu-tests.log" | cut -c1-200 | head -30
  grep -E "^E  " "$logs/gpu-tests.log" | cut -c1-160 | sort | uniq -c | sort -rn | head -20
  tail -8 "$logs/gpu-tests.log" | cut -c1-200
}

speed() {
  say speed
  limited 150 speed "$python" benchmarks/gpu_speed.py --reps 20 --json "$results/gpu-speed.json" \
    >"$logs/gpu-speed.txt" 2>&1
  sed -n '/^{"machine"/,$p' "$logs/gpu-speed.txt"
  grep -q '^{"machine"' "$logs/gpu-speed.txt" || tail -15 "$logs/gpu-speed.txt"
  limited 60 "first use" "$python" benchmarks/gpu_once.py --first-use
  limited 80 profile "$python" benchmarks/gpu_speed.py --profile --precision fp32 --dims 3 128 512 \
    --json "$results/gpu-profile.json" >"$logs/gpu-profile.txt" 2>&1
  grep -E "^(--|   )" "$logs/gpu-profile.txt" || tail -15 "$logs/gpu-profile.txt"
}

tune() {
  say tune
  limited 150 tune "$python" benchmarks/gpu_tune.py >"$logs/gpu-tune.txt" 2>&1
  tail -50 "$logs/gpu-tune.txt" | cut -c1-160
}

# gsplat as it is installed, else unpacked from FEATURESPLAT_GSPLAT_BUILT, else built from its sources.
build_gsplat() {
  "$python" -c "from gsplat import csrc" 2>/dev/null && return
  [ -f "$work/gsplat/gsplat/csrc.so" ] && return
  if [ -f "$built" ]; then
    mkdir -p "$work/gsplat" && tar -C "$work/gsplat" -xf "$built" && [ -f "$work/gsplat/gsplat/csrc.so" ] && return
  fi
  [ -n "$sdist" ] || { echo "no gsplat source distribution: set FEATURESPLAT_GSPLAT_SDIST"; return 1; }
  local arch
  arch=$("$python" -c "import torch; print('%d.%d' % torch.cuda.get_device_capability())")
  TORCH_CUDA_ARCH_LIST=$arch MAX_JOBS=$(nproc) timeout 230 \
    "$python" benchmarks/gpu_gsplat.py "$sdist" "$work/gsplat" >"$logs/gsplat-build.log" 2>&1
  # The library itself, so that the next machine of this kind need not build it: put it beside the distribution.
  local size
  size=$(stat -c %s "$work/gsplat/gsplat/csrc.so" 2>/dev/null || echo 0)
  [ "$size" -gt 0 ] && [ "$size" -lt 16000000 ] && [ -n "${OUT:-}" ] && cp "$work/gsplat/gsplat/csrc.so" "$results/"
  tail -1 "$logs/gsplat-build.log" | cut -c1-300
  [ "$size" -gt 0 ]
}

gsplat() {
  say gsplat
  if ! build_gsplat; then
    failed+=("gsplat's build")
    grep -E "error|Error" "$logs/gsplat-build.log" | cut -c1-200 | head -8
    return
  fi
  # Two processes: what one loses in a crash, the other does not.
  local part dims
  for part in few many; do
    dims=${DIMS_FEW:-3 16 32 64 128}
    [ $part = many ] && dims="${DIMS_MANY:-256 512} --no-latency"
    rm -f "$logs/gpu-gsplat-$part.json"
    # shellcheck disable=SC2086
    PYTHONPATH=$PYTHONPATH:$work/gsplat limited 110 "comparison with gsplat ($part channels)" "$python" \
      benchmarks/gpu_speed.py --against gsplat --reps "${REPS:-20}" --dims $dims --json "$logs/gpu-gsplat-$part.json" \
      >"$logs/gpu-gsplat-$part.txt" 2>&1
    grep relative_difference "$logs/gpu-gsplat-$part.txt" | cut -c1-220 | tail -1
    grep -q '^{"machine"' "$logs/gpu-gsplat-$part.txt" || tail -12 "$logs/gpu-gsplat-$part.txt" | cut -c1-200
  done
  "$python" benchmarks/gpu_speed.py --json "$results/gpu-gsplat.json" --table "$logs"/gpu-gsplat-*.json
}

train() {
  say train
  use_wheels
  local scene options
  for scene in ${TRAIN_SCENES:-tabletop dino}; do
    [ -d "$scenes/$scene" ] || { echo "no scene $scenes/$scene: set FEATURESPLAT_SCENES"; continue; }
    options=()
    [ $scene = dino ] && options=(--downscale 2)
    rm -rf "$work/run-$scene"
    limited 110 "training $scene" "$python" -c "import sys; from featuresplat.cli import main; sys.exit(main())" \
      train "$scenes/$scene" --config "${TRAIN_CONFIG:-fast}" --device cuda --out "$work/run-$scene" --quiet "${options[@]}" \
      >"$logs/gpu-train-$scene.log" 2>&1 || { tail -4 "$logs/gpu-train-$scene.log" | cut -c1-300; continue; }
    cp "$work/run-$scene/metrics.json" "$results/gpu-train-$scene.json"
    "$python" - "$results/gpu-train-$scene.json" "$scene" <<'PY'
import json, sys
m = json.load(open(sys.argv[1]))
t = m["test"]
print(f"{sys.argv[2]:<9} PSNR {t['psnr']:.2f} SSIM {t['ssim']:.4f}, {m['train_seconds']:.0f} s, {m['gaussians']} Gaussians, {m['backend']}")
PY
  done
}

sanitizer() {
  say sanitizer
  command -v compute-sanitizer >/dev/null || { echo "compute-sanitizer is not installed"; return; }
  local tool pids=() tools=(memcheck racecheck synccheck initcheck) options
  for tool in "${tools[@]}"; do
    # cuda-bindings asks the driver for functions that it may not have, and expects to be refused: only kernels count.
    options=()
    [ $tool = memcheck ] && options=(--report-api-errors no)
    # Without torch's cache of memory every tensor has bounds of its own.
    PYTORCH_NO_CUDA_MEMORY_CACHING=1 timeout 200 compute-sanitizer --tool $tool "${options[@]}" --error-exitcode 9 \
      --print-limit 10 \
      "$python" benchmarks/gpu_once.py --dims 3 7 32 129 --precision fp32 >"$logs/sanitizer-$tool.log" 2>&1 &
    pids+=($!)
  done
  local i
  for i in "${!tools[@]}"; do
    wait "${pids[$i]}" || failed+=("compute-sanitizer ${tools[$i]}")
    echo "${tools[$i]}: $(grep -E 'ERROR SUMMARY|RACECHECK SUMMARY' "$logs/sanitizer-${tools[$i]}.log" | tail -1)"
    grep -E "^=+ +(Invalid|Uninit|Error|Warning|Race|Barrier|Program|    at )" "$logs/sanitizer-${tools[$i]}.log" |
      cut -c1-180 | sort | uniq -c | sort -rn | head -5
  done
}

ncu_part() {
  say ncu
  command -v ncu >/dev/null || { echo "ncu is not installed"; return; }
  local kernels dim
  kernels=$("$python" -c "from featuresplat.raster._nvrtc_sources import engine_sources as s; print('|'.join(s().kernels))")
  for dim in ${NCU_DIMS:-3 128}; do
    FEATURESPLAT_CUDA_LINEINFO=1 limited 110 "ncu D=$dim" ncu --clock-control none --target-processes all \
      --kernel-name "regex:^($kernels)\$" --section SpeedOfLight --section Occupancy --section LaunchStats \
      --section ComputeWorkloadAnalysis --section MemoryWorkloadAnalysis --section WarpStateStats --page details --csv \
      "$python" benchmarks/gpu_once.py --big --dims "$dim" --precision fp32 >"$logs/ncu-$dim.csv" 2>"$logs/ncu-$dim.log"
    "$python" benchmarks/gpu_ncu.py "$logs/ncu-$dim.csv" "$dim" || tail -5 "$logs/ncu-$dim.csv" "$logs/ncu-$dim.log"
  done
}

[ $# -gt 0 ] || set -- all
[ "$1" = all ] && set -- correctness speed tune gsplat train sanitizer ncu
machine
for part in "$@"; do
  [ "$part" = gsplat ] && [ "$part" != "$1" ] && { build_gsplat >/dev/null 2>&1 & build=$!; }
done
for part in "$@"; do
  case $part in
    correctness | speed | tune | train | sanitizer) $part ;;
    gsplat) [ -n "${build:-}" ] && wait "$build"; gsplat ;;
    ncu) ncu_part ;;
    *) echo "no part called $part: see the head of $0" >&2; exit 2 ;;
  esac
  [ -n "${OUT:-}" ] && tar -C "$work" -czf "$results/logs.tgz" logs
done
say "done: $([ ${#failed[@]} -eq 0 ] && echo 'everything passed' || (IFS=,; echo "FAILED: ${failed[*]}"))"
[ ${#failed[@]} -eq 0 ]
