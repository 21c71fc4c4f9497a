#!/bin/bash
# Reads one memory with Volatility 3 and with Retrovisor, compares tasks and modules, and measures both.
# Volatility is installed into a temporary environment, and nothing is linked with it.
#
#   introspect/benches/volatility.sh [memory.raw registers.txt]
#
# Without arguments it takes a memory that the tests of the kernels have put in the cache. It must have page tables of
# four levels: Volatility does not read five.
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
cache=${RETROVISOR_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/retrovisor}
memory=${1:-}
registers=${2:-}
if [ -z "$memory" ]; then
    for kernel in bookworm-cloud bullseye-cloud trixie-cloud; do
        if [ -f "$cache/dumps/$kernel-small/memory" ]; then
            memory=$cache/dumps/$kernel-small/memory
            registers=$cache/dumps/$kernel-small/registers
            break
        fi
    done
fi

skip() {
    echo "SKIPPED: $1" >&2
    exit 0
}

[ -n "$memory" ] || skip "there is no memory to read: the tests of the kernels (cargo test -p retrovisor-introspect --test guest_reports) leave some"
command -v python3 >/dev/null || skip "python3 is not installed (package python3)"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export XDG_CACHE_HOME=$work/cache
# Built before the measurement begins.
cd "$root"
cargo build --quiet --release -p retrovisor-introspect --examples ${CARGO_FLAGS:---locked}
examples=${CARGO_TARGET_DIR:-$root/target}/release/examples

python3 -m venv "$work/venv" 2>/dev/null || skip "python3 cannot make environments (package python3-venv)"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check volatility3 >"$work/pip.log" 2>&1 ||
    skip "Volatility 3 could not be installed from PyPI: $(tail -n 1 "$work/pip.log")"
vol=$work/venv/bin/vol

mkdir -p "$work/symbols/linux"
"$examples/export_isf" "$memory" "$registers" >"$work/symbols/linux/kernel.json"

# Microseconds of a command; its output goes to a file.
microseconds() {
    local out=$1 start end
    shift
    start=$(date +%s%N)
    "$@" >"$out" 2>"$out.err"
    end=$(date +%s%N)
    echo $(((end - start) / 1000))
}

read_with_volatility() {
    "$vol" -q --offline -r json --cache-path "$work/cache" -s "$work/symbols" -f "$memory" "$1"
}

# The first run looks at the symbol file and keeps what it finds: it does not count.
read_with_volatility linux.pslist >/dev/null 2>"$work/first" ||
    skip "Volatility cannot read this memory: $(tail -n 1 "$work/first")"
pslist_us=$(microseconds "$work/pslist" read_with_volatility linux.pslist)
lsmod_us=$(microseconds "$work/lsmod" read_with_volatility linux.lsmod)
microseconds "$work/own" "$examples/export_isf" "$memory" "$registers" facts >/dev/null
# The same as the median of several runs.
median() {
    for _ in 1 2 3 4 5 6 7 8 9; do
        microseconds "$@"
    done | sort -n | sed -n 5p
}

# The processes alone, as the plugin does: both are whole programs. Volatility has its symbol file and its cache; so ours
# has the library, which the first run fills and which does not count either. Then also without: from nothing.
mkdir "$work/kernels"
"$examples/export_isf" "$memory" "$registers" tasks "$work/kernels" >"$work/tasks.first"
tasks_us=$(median "$work/tasks.kept" "$examples/export_isf" "$memory" "$registers" tasks "$work/kernels")
nothing_us=$(median "$work/tasks" "$examples/export_isf" "$memory" "$registers" tasks)
cmp "$work/tasks" "$work/tasks.kept"

python3 - "$work" "$pslist_us" "$lsmod_us" "$tasks_us" "$nothing_us" <<'PYTHON'
import json, sys

work = sys.argv[1]
pslist_ms, lsmod_ms, tasks_ms, nothing_ms = (round(int(us) / 1000, 1) for us in sys.argv[2:])
own = json.load(open(work + "/own"))
tasks = {pid: comm for pid, comm in own["tasks"]}
modules = set(own["modules"])
vol_tasks = {row["PID"]: row["COMM"] for row in json.load(open(work + "/pslist"))}
names = json.load(open(work + "/lsmod"))
key = next(k for k in names[0] if "ame" in k)
vol_modules = {row[key] for row in names}
took = round(own["first_ms"], 1)
print(f"tasks: {len(tasks)} ours, {len(vol_tasks)} Volatility's; modules: {len(modules)} and {len(vol_modules)}")
wrong = False
for what, ours, theirs in (("tasks", set(tasks.items()), set(vol_tasks.items())), ("modules", modules, vol_modules)):
    if ours != theirs:
        wrong = True
        print(f"{what} differ: only ours {sorted(ours - theirs)}, only theirs {sorted(theirs - ours)}")
rows = {
    "introspect.volatility_pslist_ms": pslist_ms,
    "introspect.volatility_lsmod_ms": lsmod_ms,
    "introspect.tasks_process_ms/cached": tasks_ms,
    "introspect.tasks_process_ms/from-nothing": nothing_ms,
    "introspect.volatility_ratio/cached": round(pslist_ms / tasks_ms, 1),
    "introspect.volatility_ratio/from-nothing": round(pslist_ms / nothing_ms, 1),
    "introspect.first_ms": took,
}
for name, value in rows.items():
    print(f"{name:44} {value}")
print(json.dumps(rows), file=open(work + "/rows.json", "w"))
sys.exit(1 if wrong else 0)
PYTHON
mkdir -p "${CARGO_TARGET_DIR:-$root/target}/bench"
cp "$work/rows.json" "${CARGO_TARGET_DIR:-$root/target}/bench/volatility.json"
