#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Runs a command beside busy loops: tools/busy.sh NUMBER COMMAND…
set -u
number=$1
shift
loops=""
trap 'kill $loops 2>/dev/null' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
while [ "$number" -gt 0 ]; do
  (while :; do :; done) &
  loops="$loops $!"
  number=$((number - 1))
done
env "$@"
