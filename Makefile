# Needs Go, git and make; a C compiler besides gives `make test` the race detector.

# go stamps the commit into what it builds, and fails where git cannot name one.
ifeq ($(shell git rev-parse --verify --quiet HEAD 2>/dev/null),)
export GOFLAGS := $(shell go env GOFLAGS) -buildvcs=false
endif

# Only this machine may stop and start the processes (goreman listens on 0.0.0.0).
export GOREMAN_RPC_ADDR ?= 127.0.0.1
export GOREMAN_RPC_PORT ?= 8555

# -race where it works, empty elsewhere; `make test RACE=-race` insists, `RACE=` does without.
RACE ?= $(shell go build -race runtime/cgo 2>/dev/null && echo -race)
TIMEOUT ?= 15m
TESTFLAGS ?=

.PHONY: help build run test soak soak-links soak-faults soak-sim soak-front soak-fuzz soak-dist soak-scale check bench bench-quick bench-picture bench-growth dist fmt clean
.DEFAULT_GOAL := build

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /make \1	/p' Makefile

build: ## build ./raftkv
	go build -o raftkv .

run: build ## three nodes from the Procfile, for curl on ports 12380, 22380 and 32380
	@if go tool goreman run list >/dev/null 2>&1; then \
		echo "run: a goreman runs on port $(GOREMAN_RPC_PORT) already: stop it, or set GOREMAN_RPC_PORT" >&2; exit 1; fi
	@exec tools/run-cluster

test: ## all tests, with the race detector where there is a C compiler (TESTFLAGS='-run X')
	$(eval RACE := $(RACE))
	@echo "test: $(if $(RACE),with the race detector,WITHOUT the race detector: it needs cgo and a C compiler)"
	@# Bubbles of virtual time have one processor and processes mostly wait, so packages run beside each other, and more
	@# parallel tests than there are processors. make check has vetted them. The program that
	@# test/process runs, and the documents, are no inputs that go test knows of: nothing is cached.
	go run tools/test.go $(RACE) -timeout $(TIMEOUT) -vet=off -parallel 4 -count=1 $(TESTFLAGS) ./...
	@# Without the race detector: it does not see that an answer comes after what it tells of.
	go run tools/test.go -timeout $(TIMEOUT) -vet=off -count=1 -run '^Test(API|Quota|Room)' $(TESTFLAGS) . -front
	go run tools/test.go $(RACE) -timeout $(TIMEOUT) -vet=off -parallel 4 -count=1 -run '^TestProcAcknowledgedIsSynced|^TestChaos' $(TESTFLAGS) ./test/process -front=false
	cd tools/dist && go run ../test.go -vet=off -count=1 $(TESTFLAGS) .

# Six parts, which make -j6 runs beside each other, and one behind them.
soak: soak-links soak-faults soak-sim soak-front soak-fuzz soak-dist ## what takes longer: the TestSoak... and the chaos tests at full length, for hours
	$(MAKE) soak-scale
	@echo "soak: passed on $$(git rev-parse --short HEAD)"

SOAK = RAFTKV_SOAK=1 go test $(RACE) -timeout 6h -count=1 -v $(TESTFLAGS)

soak-links:
	$(SOAK) -run 'TestSoak(.*Link|.*StoppedNode)' ./test/process

soak-faults:
	$(SOAK) -run 'TestSoak(Proc|Memory)|TestChaos|TestProcJoinLargeCluster' ./test/process

soak-sim:
	$(SOAK) -run 'TestSoak(Sim|Hostile|Front)' .
	go test -run '^$$' -fuzz '^FuzzProcess$$' -fuzztime 10m -fuzzminimizetime 10x .
	go test -run '^$$' -fuzz '^FuzzFront$$' -fuzztime 10m -fuzzminimizetime 10x .

# What reads what others have written: clients, other nodes, a disk. FUZZTIME is for each.
FUZZTIME ?= 10m
FUZZ = internal/state:DecodeBatch internal/state:Restore internal/state:DecodeOutcome internal/once:Read \
	internal/api:ListParameters internal/api:RequestKey internal/list:Query internal/txnapi:Transaction internal/watchapi:Request internal/web:DecodeStrict internal/transfer:Formats

soak-fuzz:
	for f in $(FUZZ); do \
		go test -run '^$$' -fuzz "^Fuzz$${f#*:}$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 10x ./$${f%:*} || exit 1; \
	done

# All that clients can notice, without the fast path and, in one process, through it.
soak-front:
	RAFTKV_SOAK=1 go test -timeout 1h -count=1 -v . -run '^Test(API|Quota|Room)' -front
	$(SOAK) ./test/process -run '^Test(Proc|Readme)' -front=false
	$(SOAK) ./test/process -run '^TestChaos' -front=false

# The release for all platforms, twice, and once without anything built before.
soak-dist:
	cd tools/dist && RAFTKV_SOAK=1 go test -timeout 1h -count=1 -v $(TESTFLAGS) -run 'TestSoak' .

# What these say about time is for a machine that has nothing else to do, so they come
# behind the other parts, and without the race detector.
soak-scale:
	RAFTKV_SOAK=1 go test -timeout 1h -count=1 -v $(TESTFLAGS) -run 'TestSoak(RollingRestart|Keepalives|MillionDue|StreamBesideWrites|Bounds|.*Watches|LongPolls)' ./test/process

# What git sees, to compare before and after go generate.
STATE = { git status --porcelain; git diff; } 2>/dev/null | git hash-object --stdin

check: ## formatting, vet, staticcheck, errcheck, go mod tidy, generated code
	@echo "check: gofmt"; files=$$("$$(go env GOROOT)/bin/gofmt" -l .) && test -z "$$files" || { echo "make fmt would change: $$files" >&2; exit 1; }
	go vet ./...
	go tool -modfile=tools/go.mod staticcheck ./...
	go tool -modfile=tools/go.mod errcheck -ignoretests -ignoregenerated -exclude tools/errcheck.txt ./...
	go mod tidy -diff
	cd bench && go vet ./... && go test ./... && go mod tidy -diff && \
		go tool -modfile=../tools/go.mod staticcheck ./... && \
		go tool -modfile=../tools/go.mod errcheck -ignoretests -exclude ../tools/errcheck.txt ./...
	cd deploy/check && go vet ./... && go test -count=1 ./... && go mod tidy -diff
	cd tools/dist && go vet ./... && go mod tidy -diff && \
		go tool -modfile=../go.mod staticcheck ./... && \
		go tool -modfile=../go.mod errcheck -ignoretests -exclude ../errcheck.txt ./...
	@echo "check: go generate"; was=$$($(STATE)); go generate ./... && test "$$was" = "$$($(STATE))" || { echo "go generate changed files: commit them" >&2; exit 1; }

# The benchmark is a module of its own: what it measures and compares with is no
# part of the server. BENCHFLAGS as in `make bench BENCHFLAGS='-rows PUT -v'`.
BENCHFLAGS ?=

bench: ## raftkv beside etcd, the whole table in 50 minutes; docs/performance.md tells more
	cd bench && go run . -json bench.json $(BENCHFLAGS)

bench-quick: ## its PUT and GET rows, in under two minutes
	cd bench && go run . -quick -turns 3 $(BENCHFLAGS)

bench-picture: ## the picture in docs/, of the last make bench
	cd bench && go run . -from bench.json -picture ../docs/performance.svg

bench-growth: ## how cost grows; makes the plots in docs/
	cd bench && go run . -growth ../docs $(BENCHFLAGS)

# The same commit, version and Go make the same bytes. docs/install.md says what is made.
dist: ## archives, deb, rpm and checksums of a release, in dist/: make dist VERSION=v1.2.3
	@cd tools/dist && go run . -version '$(VERSION)'

fmt: ## gofmt -w, go mod tidy
	go fmt ./...
	go mod tidy

clean: ## remove what was built; data directories (run, raftkv-1 ...) stay
	rm -f raftkv
	rm -rf dist
