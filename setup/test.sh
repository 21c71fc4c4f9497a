#!/usr/bin/env bash
# All tests of the workspace, with cargo-nextest where it is installed.
# A test that needs more than this machine has prints "SKIPPED: why": those lines are shown at the end.
set -euo pipefail
read -ra flags <<<"${CARGO_FLAGS:-}"

if ! cargo nextest --version >/dev/null 2>&1; then
    echo "cargo-nextest is not installed, using cargo test (cargo install cargo-nextest gives the better report)" >&2
    exec cargo test --workspace --all-targets --no-fail-fast "${flags[@]}" -- --nocapture
fi

# nextest keeps its reports in the workspace, wherever the build is.
report=target/nextest/default/junit.xml
rm -f "$report"
status=0
cargo nextest run --workspace --no-fail-fast "${flags[@]}" || status=$?
if [ -f "$report" ]; then
    grep -ho 'SKIPPED: [^<]*' "$report" | sort | uniq -c | sed -E 's/^ *([0-9]+) (SKIPPED: .*)/\2 (\1 tests)/; s/&apos;|&quot;/"/g; s/\(1 tests\)/(1 test)/' || true
fi
exit "$status"
