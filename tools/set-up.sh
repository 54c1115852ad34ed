#!/bin/sh
# Makes a fresh Debian 12 with Node.js and npm ready for the tests and the demo: system packages (only what is
# missing), npm packages and the build. Changes nothing that is there already.
set -eu
cd "$(dirname "$0")/.."

missing=""
need() {
  missing="$missing $1"
}
command -v gcc >/dev/null || need gcc
[ -f /usr/include/stdio.h ] || need libc6-dev
command -v as >/dev/null || need binutils
command -v unshare >/dev/null || need util-linux
command -v crit >/dev/null || need criu
command -v ip >/dev/null || need iproute2
command -v mkfs.btrfs >/dev/null || [ -x /sbin/mkfs.btrfs ] || need btrfs-progs
command -v mkfs.xfs >/dev/null || [ -x /sbin/mkfs.xfs ] || need xfsprogs
command -v nft >/dev/null || need nftables
command -v iptables >/dev/null || need iptables
command -v runc >/dev/null || need runc
command -v dockerd >/dev/null || need docker.io
[ -x /bin/busybox ] || need busybox-static
command -v bwrap >/dev/null || need bubblewrap
command -v podman >/dev/null || need podman
command -v redis-server >/dev/null || need redis-server
command -v memcached >/dev/null || need memcached
[ -x /usr/sbin/nginx ] || need nginx-light
ls /usr/lib/postgresql/*/bin/postgres >/dev/null 2>&1 || need postgresql
command -v javac >/dev/null || need default-jdk-headless
command -v go >/dev/null || need golang-go
command -v tmux >/dev/null || need tmux
command -v vim >/dev/null || need vim
/usr/bin/python3 -c "import google.protobuf" 2>/dev/null || need python3-protobuf

if [ -n "$missing" ]; then
  echo "Installing system packages:$missing"
  export DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 # the servers among them are not started
  if ! command -v apt-get >/dev/null; then
    echo "error: these Debian packages, or what they are called here, must be installed by hand:$missing" >&2
    exit 1
  fi
  # shellcheck disable=SC2086 # a list of words
  if ! { apt-get -qq update && apt-get -qq install -y --no-install-recommends $missing >/dev/null; }; then
    echo "error: apt-get could not install:$missing" >&2
    echo "  It needs root and a network. Install them by hand and try again." >&2
    exit 1
  fi
fi

if ! command -v npm >/dev/null; then
  echo "error: npm is not in PATH: Node.js 20.19 or later and npm are needed" >&2
  exit 1
fi
# npm writes this file at the end of an installation.
installed=node_modules/.package-lock.json
if [ "${1:-}" = --clean ] || [ ! -f $installed ] || [ package-lock.json -nt $installed ]; then
  npm ci
else
  npm run --silent build
fi
