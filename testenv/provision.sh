#!/usr/bin/env bash
# Makes a Debian 12 machine (a fresh one, or one that has some of it) ready for `make test`, `make bench`
# and `make generate`. Run as root; running it again changes nothing. The Vagrantfile beside it does just that in a VM.
#
#   GO_VERSION=1.26.8   the Go that is installed under /usr/local/go when there is none, or an older one
#   --packages          only Debian's packages: neither Go nor the bpf file system
set -euo pipefail

GO_VERSION=${GO_VERSION:-1.26.8}

if [ "$(id -u)" != 0 ]; then
    echo "$0: must be run as root" >&2
    exit 1
fi

# clang, llvm and libbpf-dev are only for `make generate`; the real Dovecot is a backend in some of the tests, and the last
# line are clients that nobody here wrote.
packages=(
    make gcc libc6-dev git curl ca-certificates
    clang-19 llvm-19 libbpf-dev
    dovecot-imapd dovecot-pop3d dovecot-lmtpd dovecot-managesieved dovecot-submissiond
    python3 isync swaks sieve-connect libio-socket-ssl-perl libauthen-sasl-perl libnet-ssleay-perl
)
missing=()
for p in "${packages[@]}"; do
    if [ "$(dpkg-query -W -f '${db:Status-Status}' "$p" 2>/dev/null || true)" != installed ]; then
        missing+=("$p")
    fi
done
if [ ${#missing[@]} -gt 0 ]; then
    # Debian starts services on installation: Dovecot must not take ports on somebody's machine. A policy
    # that is there already is left alone.
    policy=/usr/sbin/policy-rc.d
    if [ ! -e $policy ]; then
        printf '#!/bin/sh\nexit 101\n' >$policy
        chmod 755 $policy
        trap 'rm -f $policy' EXIT
    fi
    export DEBIAN_FRONTEND=noninteractive
    apt-get update
    apt-get install -y --no-install-recommends "${missing[@]}"
fi

if [ "${1:-}" = --packages ]; then
    exit 0
fi

# Debian 12 has a Go that is older than what go.mod asks for.
have() { command -v "$1" >/dev/null && [ "$(printf '%s\n' "go$GO_VERSION" "$("$1" env GOVERSION)" | sort -V | head -n 1)" = "go$GO_VERSION" ]; }
if ! have go && ! have /usr/local/go/bin/go; then
    archive=go$GO_VERSION.linux-$(dpkg --print-architecture).tar.gz
    tmp=$(mktemp -d)
    curl -fsSL -o "$tmp/$archive" "https://go.dev/dl/$archive"
    rm -rf /usr/local/go
    tar -C /usr/local -xzf "$tmp/$archive"
    rm -rf "$tmp"
fi
if [ ! -e /etc/profile.d/go.sh ] && ! command -v go >/dev/null; then
    echo 'export PATH=$PATH:/usr/local/go/bin' >/etc/profile.d/go.sh
fi

# Pins of the kernel programs live here.
if ! grep -q ' /sys/fs/bpf bpf ' /proc/mounts; then
    mount -t bpf bpf /sys/fs/bpf
fi
