# `make` alone prints the targets.
GO       ?= go
FOR      ?= 60s
BIN      ?= bin/usher
PREFIX   ?= /usr/local
DEBIAN13 ?= /var/cache/usher/trixie
STATICCHECK = $(GO) run honnef.co/go/tools/cmd/staticcheck@v0.8.2
export GOTOOLCHAIN ?= local
export CGO_ENABLED ?= 0

.PHONY: help build install run test check bench bench-ring soak test-dovecot24 fuzz generate deps clean

help: ## print the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: ## build bin/usher, one static binary
	$(GO) build -trimpath -o $(BIN) ./cmd/usher

install: build ## install the binary to PREFIX/sbin, and its manual pages
	install -D -m 0755 $(BIN) $(DESTDIR)$(PREFIX)/sbin/usher
	install -d $(DESTDIR)$(PREFIX)/share/man/man8
	$(BIN) man $(DESTDIR)$(PREFIX)/share/man/man8

run: build ## show a whole site at work for FOR (default 60s); root: in the kernel
	$(BIN) demo --for $(FOR)

test: deps check ## everything that CI runs; as root it installs the Debian packages it needs
	CGO_ENABLED=1 $(GO) test -race -shuffle=on -count=1 -timeout 20m ./...

check: ## formatting, vet, staticcheck, generated files up to date
	@unformatted=$$(gofmt -l $$(git ls-files '*.go')); if [ -n "$$unformatted" ]; then echo "run gofmt on: $$unformatted"; exit 1; fi
	$(GO) vet ./...
	$(STATICCHECK) ./...
	@if command -v clang-19 >/dev/null; then $(MAKE) --no-print-directory generate && \
		git diff --exit-code -- bpf || { echo "bpf/: run make generate and commit the result"; exit 1; }; \
	else echo "no clang-19 here: whether bpf/ is up to date is left to CI"; fi

bench: ## the benchmark of the lab: direct, tc, xdp, splice, copy side by side (root)
	$(GO) test -run '^$$' -bench Site -benchtime 1x -timeout 60m ./cmd/usher

bench-ring: ## a director of Dovecot 2.3 and Usher side by side in a ring (root), and what the director and its ring cost alone
	$(GO) test -run '^$$' -bench '^BenchmarkRing$$' -benchtime 1x -timeout 5m ./cmd/usher
	$(GO) test -run '^$$' -bench . -timeout 5m ./director ./director/ring

soak: ## the simulation of rings with new seeds for SOAK (default 1h)
	$(GO) test ./director/ring/sim -run TestSim -timeout 0 -for=$${SOAK:-1h}

test-dovecot24: ## the drop-in before real Dovecot 2.4, in a Debian 13 below DEBIAN13 (root; made by debootstrap)
	testenv/dovecot/trixie.sh $(DEBIAN13)
	USHER_DOVECOT24=$(DEBIAN13) $(GO) test -count=1 -timeout 10m ./cmd/usher -run 'DropIn.*24'

fuzz: ## every fuzz target for FUZZ (default 10m) each
	@for p in $$($(GO) list ./...); do for f in $$($(GO) test -list '^Fuzz' $$p | grep '^Fuzz'); do \
		echo "$$p $$f"; $(GO) test -run '^$$' -fuzz "^$$f$$" -fuzztime $${FUZZ:-10m} $$p || exit 1; done; done

generate: ## make the BPF objects and their Go types anew (clang-19, llvm-19, libbpf headers)
	$(GO) generate ./bpf

deps: ## Debian packages for the tests, when root and apt-get are there
	@if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then testenv/provision.sh --packages; \
	else echo "not root, or no apt-get: no packages are installed, and tests that need them skip and say so"; fi

clean: ## remove what was built
	rm -rf bin
