#!/usr/bin/env bash
# Makes a Debian 13 with Dovecot 2.4 in a directory, for `make test-dovecot24`: trixie.sh DIRECTORY
# Run as root; a directory that is complete already is left alone.
set -euo pipefail

dir=${1:?usage: $0 DIRECTORY}
if [ "$(id -u)" != 0 ]; then
    echo "$0: must be run as root" >&2
    exit 1
fi
if [ -e "$dir/.complete" ]; then
    exit 0
fi
if ! command -v debootstrap >/dev/null; then
    apt-get update
    DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends debootstrap
fi
rm -rf "$dir"
mkdir -p "$dir"
debootstrap --variant=minbase --include=dovecot-imapd,dovecot-pop3d,dovecot-lmtpd trixie "$dir"
touch "$dir/.complete"
