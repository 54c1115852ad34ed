#!/bin/sh
# The one test command: sets everything up, runs every test, and ends with the line "N passed, N failed".
# Arguments go to vitest, for example: tools/test.sh src/images
set -eu
cd "$(dirname "$0")/.."
if ! tools/set-up.sh; then
  echo "0 passed, 1 failed"
  exit 1
fi
exec node --import tsx tools/run-tests.ts "$@"
