#!/bin/sh
# The one demo command: sets everything up and shows checkpoint, restore and clone on a counting shell loop.
set -eu
cd "$(dirname "$0")/.."
if [ ! -f node_modules/.package-lock.json ]; then
  npm ci
elif [ ! -f dist/reprise.cjs ]; then
  npm run --silent build
fi
exec node --import tsx tools/demo.ts "$@"
