#!/usr/bin/env bash
# Runs every fuzzer of fuzz/ (or FUZZ_TARGETS) for FUZZ_SECONDS each. Needs a nightly toolchain and cargo-fuzz.
set -euo pipefail
cd "$(dirname "$0")/../fuzz"
seconds=${FUZZ_SECONDS:-30}
if ! cargo +nightly --version >/dev/null 2>&1 || ! cargo +nightly fuzz --version >/dev/null 2>&1; then
    echo "fuzzing needs a nightly toolchain and cargo-fuzz:" >&2
    echo "    rustup toolchain install nightly && cargo install cargo-fuzz" >&2
    exit 1
fi
cargo +nightly run --quiet --example seeds
read -ra targets <<<"${FUZZ_TARGETS:-$(cargo +nightly fuzz list | tr '\n' ' ')}"
for target in "${targets[@]}"; do
    echo "== fuzz $target: $seconds s" >&2
    # Half a GiB is far more than any decoder may take; the seeds of catalogues are long.
    cargo +nightly fuzz run "$target" -- \
        -max_total_time="$seconds" -rss_limit_mb=2048 -malloc_limit_mb=512 -timeout=20 -print_final_stats=1 -verbosity=0
done
