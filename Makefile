# Retrovisor. `make` lists the targets.

# The lock file decides; CARGO_FLAGS= allows it to change.
CARGO_FLAGS ?= --locked
ARGS ?=
LAB_KERNELS ?= bullseye-cloud bookworm-plain trixie-cloud trixie-plain sid-cloud sid-plain
export CARGO_FLAGS
STEP = @setup/step.sh

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help setup setup-tests demo test test-setup test-server test-qemu-versions test-libvirt soak test-lab test-kernels lint doc fuzz bench bench-volatility bench-backup

help: ## list the targets
	@sed -nE 's/^([a-z-]+):.*## (.*)/  make \1\t\2/p' Makefile | expand -t 22

setup: ## get what the demo needs: QEMU, a compiler, a Debian kernel and busybox, and make its guest
	$(STEP) setup setup/guest.sh

setup-tests: setup ## get what the tests need besides: other Debian kernels and their headers
	$(STEP) "other kernels" setup/kernels.sh few
	$(STEP) "attackers" setup/attackers.sh

demo: setup ## watch the whole story happen to a Debian guest (ARGS=... for its options)
	$(STEP) "build" cargo build --release -p retrovisor $(CARGO_FLAGS)
	@setup/run.sh cargo run --quiet --release -p retrovisor $(CARGO_FLAGS) -- demo $(ARGS)

test: setup-tests lint ## formatting, clippy, documentation and all tests
	$(STEP) "build tests" cargo test --workspace --all-targets --no-run $(CARGO_FLAGS)
	$(STEP) "documentation tests" cargo test --workspace --doc $(CARGO_FLAGS)
	$(STEP) "set-up" setup/test-setup.sh quick
	$(STEP) "tests" setup/test.sh

test-setup: ## the set-up in bare Debian 12 and 13, and beside a newer qemu-utils (root, mmdebstrap; downloads about 1 GB)
	$(STEP) "set-up" setup/test-setup.sh all

test-server: setup ## 60 rollbacks each of four Debian servers under load, compared bit for bit (needs mmdebstrap; about an hour)
	$(STEP) "server guest" setup/server.sh
	$(STEP) "build" cargo build --release -p retrovisor -p retrovisor-tests --bins --example server $(CARGO_FLAGS)
	@setup/run.sh cargo run --quiet --release -p retrovisor-tests --example server $(CARGO_FLAGS)

test-qemu-versions: setup ## one history under QEMU 7.2, 10.x and the newest (downloads about 130 MB once)
	$(STEP) "build" cargo build --release -p retrovisor -p retrovisor-tests --bins --example versions $(CARGO_FLAGS)
	@QEMUS="$$(dirname "$$(setup/qemu.sh bookworm)"):$$(dirname "$$(setup/qemu.sh trixie)"):$$(dirname "$$(setup/qemu.sh sid)")" \
		setup/run.sh cargo run --quiet --release -p retrovisor-tests --example versions $(CARGO_FLAGS)

test-libvirt: setup ## a libvirt domain: attach, rollback, detach, and libvirt's own saves and snapshots (root; downloads 63 MB once)
	$(STEP) "build" cargo build --release -p retrovisor -p retrovisor-tests --bins --example libvirt $(CARGO_FLAGS)
	@LIBVIRT="$$(setup/libvirt.sh)" setup/run.sh cargo run --quiet --release -p retrovisor-tests --example libvirt $(CARGO_FLAGS)

soak: setup ## random operations, kills, a full disk and clock steps on two guests for SOAK_SECONDS (600)
	$(STEP) "build" cargo build --release -p retrovisor -p retrovisor-tests --bins --example soak $(CARGO_FLAGS)
	@SOAK_FAKETIME="$${SOAK_FAKETIME-$$(setup/faketime.sh)}" setup/run.sh cargo run --quiet --release -p retrovisor-tests --example soak $(CARGO_FLAGS)

test-lab: setup ## Linux in microVMs for long, and on every kernel; in the lab where this host's KVM runs no Linux
	$(STEP) "all kernels" setup/kernels.sh all
	$(STEP) "build" cargo build -p retrovisor $(CARGO_FLAGS)
	$(STEP) "long run" env RETROVISOR_LAB_LONG=1 LAB_SECONDS=7200 LAB_KERNELS="$(LAB_KERNELS)" \
		cargo test -p retrovisor-tests --test microvm $(CARGO_FLAGS) -- --nocapture --test-threads 1

test-kernels: ## introspection on every kernel: 5.10, 6.1, 6.12, 7.x, cloud and plain (downloads about 600 MB once)
	$(STEP) setup setup/guest.sh
	$(STEP) "all kernels" setup/kernels.sh all
	$(STEP) "attackers" setup/attackers.sh all
	$(STEP) "tests" cargo test -p retrovisor-introspect --test guest_reports --test attacks $(CARGO_FLAGS) -- --include-ignored --nocapture --test-threads 1
	$(STEP) "owners of frames" cargo test -p retrovisor-introspect --test owners $(CARGO_FLAGS) -- --include-ignored --nocapture --test-threads 1

lint: ## formatting, clippy, documentation, licences, shell scripts, words
	$(STEP) "formatting" cargo fmt --all --check
	$(STEP) "clippy" cargo clippy --workspace --all-targets $(CARGO_FLAGS) -- -D warnings
	$(STEP) "documentation" env RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps $(CARGO_FLAGS)
	$(STEP) "licences" setup/deny.sh
	$(STEP) "shell scripts" setup/shellcheck.sh
	$(STEP) "words" setup/words.sh

doc: ## make the documentation in target/doc
	$(STEP) "documentation" env RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps $(CARGO_FLAGS)

fuzz: ## run every fuzzer for FUZZ_SECONDS (30); needs nightly and cargo-fuzz
	$(STEP) "fuzzers" setup/fuzz.sh

bench: setup-tests ## measure; rows go to target/bench
	$(STEP) "store" cargo bench -p retrovisor-snapshot --bench store $(CARGO_FLAGS)
	$(STEP) "verdicts" cargo bench -p retrovisor-analytics --bench score $(CARGO_FLAGS)
	$(STEP) "introspection" cargo bench -p retrovisor-introspect --bench introspect $(CARGO_FLAGS)
	$(STEP) "QEMU, introspection, verdicts" cargo bench -p retrovisor-tests --bench qemu $(CARGO_FLAGS)
	$(STEP) "microVM" cargo bench -p retrovisor-tests --bench kvm $(CARGO_FLAGS)
	$(STEP) "beside an import" cargo bench -p retrovisor-tests --bench import $(CARGO_FLAGS)

bench-volatility: setup ## read one memory beside Volatility 3, in an environment that is thrown away
	$(STEP) "Volatility 3" introspect/benches/volatility.sh

bench-backup: setup ## keep images of a guest beside restic and borg
	$(STEP) "store, restic, borg" cargo bench -p retrovisor-tests --bench backup $(CARGO_FLAGS)
