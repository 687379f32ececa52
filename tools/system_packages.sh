#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Debian packages that pip cannot bring: software rendering without a display, and a compiler for the ROS messages.
# Installed when we may, named otherwise. Nothing happens when they are there or the system has no apt.
set -eu
command -v dpkg-query >/dev/null || exit 0

wanted="libegl1 libegl-mesa0 libgl1-mesa-dri"
command -v c++ >/dev/null || wanted="$wanted g++"
"${1:-python3}" -c 'import os, sys, sysconfig
sys.exit(not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")))' || wanted="$wanted python3-dev"

missing=""
for package in $wanted; do
  dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q "ok installed" || missing="$missing $package"
done
[ -n "$missing" ] || exit 0

if [ "$(id -u)" = 0 ]; then
  echo "installing Debian packages:$missing"
  export DEBIAN_FRONTEND=noninteractive
  if apt-get update -qq && apt-get install -qq -y --no-install-recommends $missing >/dev/null; then
    exit 0
  fi
  echo "they could not be installed; rendering or the build of the messages may fail" >&2
else
  echo "missing Debian packages, to be installed by hand: sudo apt-get install$missing" >&2
fi
