# Every command that a person or CI runs. `./justw` is `just`, fetched if it is missing.

set shell := ["bash", "-euo", "pipefail", "-c"]

buf_version := "1.75.0"
buf := justfile_directory() / ".cache/buf" / buf_version
kafka := justfile_directory() / "tests/kafka"

# List the recipes
[private]
default:
    @"{{ just_executable() }}" --justfile "{{ justfile() }}" --list --unsorted

# Run everything in one process, with demo agents, and show their runs: `just up`, `just up --help`
[group('run')]
up *args:
    cargo build --locked --bin dashstream
    cargo run --quiet --locked --bin dashstream -- local {{ args }}

# Compile the services and the tests, all in one go, so that the test recipes compile nothing more
[group('run')]
build:
    cargo build --workspace --locked --bins --tests

# Install what the tests need and is not there: Redis, Java, Maven, a C++ compiler, Node; Kafka's jars; buf
[group('run')]
setup:
    #!/usr/bin/env bash
    set -euo pipefail
    say() { echo "setup: $*"; }
    has() { command -v "$1" >/dev/null 2>&1; }
    java_is_new() { has java && [[ $(java -version 2>&1 | sed -n 's/.* version "\([0-9]*\).*/\1/p') -ge 17 ]]; }

    missing() {
        has git || echo git
        has redis-server || echo redis-server
        java_is_new || echo default-jdk-headless
        has mvn || echo maven
        has gcc || echo gcc
        has g++ || echo g++
        has make || echo make
        has npm || echo npm
        has openssl || echo openssl
    }

    has cargo || { say "Rust is missing: install it with rustup (https://rustup.rs)" >&2; exit 1; }
    mapfile -t wanted < <(missing)
    if ((${#wanted[@]})) && [[ $EUID == 0 ]] && has apt-get; then
        say "installing ${wanted[*]} with apt-get"
        export DEBIAN_FRONTEND=noninteractive
        apt-get update -qq
        apt-get install -y -qq --no-install-recommends "${wanted[@]}" >/dev/null
        mapfile -t wanted < <(missing)
    fi
    if ((${#wanted[@]})); then
        say "missing, by Debian's names: ${wanted[*]} (Java 17 or newer will do). Install them and try again" >&2
        exit 1
    fi

    jars="{{ kafka }}/target/lib"
    if [[ -e $jars/.complete && ! "{{ kafka }}/pom.xml" -nt $jars/.complete ]]; then
        say "Kafka is there"
    else
        say "fetching Kafka with Maven into tests/kafka/target/lib"
        rm -rf "$jars"
        mvn --batch-mode --quiet -Dstyle.color=never --file "{{ kafka }}/pom.xml" dependency:copy-dependencies
        touch "$jars/.complete"
    fi

    if [[ -x "{{ buf }}/node_modules/.bin/buf" ]]; then
        say "buf is there"
    else
        say "fetching buf {{ buf_version }} with npm into .cache"
        mkdir -p "{{ buf }}"
        npm install --silent --no-fund --no-audit --prefix "{{ buf }}" "@bufbuild/buf@{{ buf_version }}"
    fi

# Format all Rust sources
[group('check')]
fmt:
    cargo fmt --all

# Fail if `just fmt` would change anything
[group('check')]
fmt-check:
    @if command -v rustfmt >/dev/null; then cargo fmt --all --check; else echo "rustfmt is not installed: skipped"; fi

# Run clippy over everything; a warning is an error
[group('check')]
lint:
    @if command -v cargo-clippy >/dev/null; then \
        cargo clippy --workspace --all-targets --locked -- -D warnings; \
    else \
        echo "cargo-clippy is not installed: skipped"; \
    fi

# Check the style of the wire contract, with the buf that `just setup` fetched
[group('check')]
proto-lint:
    cd proto && "{{ buf }}/node_modules/.bin/buf" lint

# Check licences, advisories, bans and sources of all dependencies, where cargo-deny is installed
[group('check')]
deny:
    @if command -v cargo-deny >/dev/null; then \
        cargo deny --locked check --config .deny.toml; \
    else \
        echo "cargo-deny is not installed: skipped"; \
    fi

# Validate docker-compose.yml: with Docker where its compose plugin is there, else as plain YAML
[group('check')]
compose-check:
    @if docker compose version >/dev/null 2>&1; then \
        docker compose config --quiet && echo "docker compose accepts docker-compose.yml"; \
    elif python3 -c 'import yaml' 2>/dev/null; then \
        python3 -c 'import yaml; yaml.safe_load(open("docker-compose.yml"))' && echo "docker-compose.yml is YAML"; \
    else \
        echo "neither docker compose nor PyYAML is installed: skipped"; \
    fi

# Everything CI runs, in CI's order; stops at the first failure
[group('test')]
test:
    #!/usr/bin/env bash
    set -euo pipefail
    began=$SECONDS
    step() {
        local heading=$1 recipe=$2 started=$SECONDS
        printf '\n==> %s (just %s)\n' "$heading" "$recipe"
        if ! "{{ just_executable() }}" --justfile "{{ justfile() }}" "$recipe"; then
            printf '==> %s: FAILED after %d s; again with: just %s\n' "$heading" $((SECONDS - started)) "$recipe"
            exit 1
        fi
        printf '==> %s: ok, %d s\n' "$heading" $((SECONDS - started))
    }
    step "Tools" setup
    step "Formatting" fmt-check
    step "Wire contract" proto-lint
    step "Lints" lint
    step "Compilation" build
    step "Unit tests" test-unit
    step "Property and integration tests" test-property
    step "End-to-end tests" test-e2e
    step "House rules" test-tidy
    printf '\n==> All passed, %d s\n' $((SECONDS - began))

# Test the inside of all crates, or what matches: `just test-unit`, `just test-unit ring`
[group('test')]
test-unit *filter:
    cargo test --workspace --locked --lib --bins -- {{ filter }}

# Run the crates' own integration tests: properties, seeded schedules; all but e2e and tidy
[group('test')]
test-property *filter:
    #!/usr/bin/env bash
    set -euo pipefail
    # `--workspace` with named targets, not `--exclude`: other features would compile everything again.
    targets=$(cargo metadata --no-deps --format-version 1 --locked |
        grep -o '"kind":\["test"\],"crate_types":\["bin"\],"name":"[^"]*"' | cut -d'"' -f12 |
        sort -u | grep -vx -e e2e -e tidy || true)
    if [[ -z $targets ]]; then echo "there are none"; exit; fi
    cargo test --workspace --locked $(printf -- '--test %s ' $targets) -- {{ filter }}

# Test the whole system, with real Kafka and Redis: `just test-e2e`, `just test-e2e harness`
[group('test')]
test-e2e *filter:
    cargo test --workspace --locked --test e2e -- {{ filter }}

# Check the house rules
[group('test')]
test-tidy:
    cargo test --workspace --locked --test tidy

# Measure ingest on a Kafka and a Redis of its own: `just bench-ingest --records 1000000`
[group('bench')]
bench-ingest *args:
    cargo build --release --locked --bin dashstream-ingest --bin dashstream-replay
    cargo bench --locked --package dashstream-tests --bench ingest -- {{ args }}

# Measure the producer on a Kafka of its own, against bare rdkafka: `just bench-producer --records 1000000`
[group('bench')]
bench-producer *args:
    cargo bench --locked --package dashstream-tests --bench producer -- {{ args }}

# Measure the store on a Redis of its own, against plain Redis and the predecessor's layout: `just bench --json FILE`
[group('bench')]
bench *args:
    cargo bench --locked --package dashstream-replay -- {{ args }}
