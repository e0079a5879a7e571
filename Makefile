# The doors of the house. Each is safe to repeat; `make help` lists them.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup fetch demo smollm2 test check bench gpu interop cargo
# Doors share cargo's lock and the machine's cores: one after the other.
.NOTPARALLEL:

# rustup puts cargo here; a shell that was open before does not know it yet.
export PATH := $(PATH):$(HOME)/.cargo/bin
include scripts/environment.mk

help: ## list the doors
	@sed -nE 's/^([a-z0-9]+):[^#]*## (.*)$$/  make \1\t\2/p' Makefile | expand -t 16

setup: ## fetch libtorch into .libtorch (CUDA=1: with CUDA; LIBTORCH=/path: use the one that is there)
	@scripts/setup-libtorch

fetch: ## fetch SmolLM2-135M and PyRIT's judgements of harm into fetched/, for make smollm2
	@scripts/fetch

demo: cargo setup ## build, then align the embedded model end to end, with a report (ARGS="--help")
	cargo build --release
	target/release/saddle demo $(ARGS)

smollm2: cargo setup fetch ## build, then align SmolLM2-135M end to end; docs/smollm2.md (ARGS="--set ppo.updates=2")
	cargo build --release
	scripts/smollm2 $(ARGS)

test: cargo setup ## run every test
	cargo test --workspace --doc --quiet
	if cargo nextest --version >/dev/null 2>&1; then cargo nextest run --workspace; \
	else cargo test --workspace --lib --bins --tests; fi

check: cargo setup ## formatting, lints, documentation, dependencies: warnings are errors
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --document-private-items --quiet
	if cargo deny --version >/dev/null 2>&1; then cargo deny check bans licenses sources; \
	else echo "cargo-deny is not installed: dependencies were not checked"; fi

bench: cargo setup ## run the benchmarks (ARGS=filter)
	cargo bench --workspace --benches -- $(ARGS)

gpu: cargo setup ## the GPU's checks and benches, a table, after make setup CUDA=1 (ARGS="--device cpu --quick" tries the script)
	cargo build --release
	scripts/gpu-checks $(ARGS)

interop: cargo setup ## compare with transformers, gguf and sentencepiece (ARGS="families smollm2"; fetches 3 GB once)
	tests/interop/run $(ARGS)

cargo:
	@command -v cargo >/dev/null || { printf '%s\n' "no cargo on the PATH" "  remedy: install Rust from https://rustup.rs" >&2; exit 3; }
