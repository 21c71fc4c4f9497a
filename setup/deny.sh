#!/usr/bin/env bash
# Licences, bans and sources of the dependencies, where cargo-deny is installed.
# Advisories change without us: they are reported, and fail nothing.
set -euo pipefail
if ! cargo deny --version >/dev/null 2>&1; then
    echo "cargo-deny is not installed: licences and sources were NOT checked (cargo install cargo-deny)" >&2
    exit 0
fi
cargo deny --log-level error check licenses bans sources
cargo deny --log-level error check advisories || echo "advisories: see above (no network, or something to look at)" >&2
