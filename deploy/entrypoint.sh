#!/bin/bash
# Sources ROS and the package, then runs what it is given.
set -e
# shellcheck disable=SC1090,SC1091
source "/opt/ros/${ROS_DISTRO}/setup.bash"
source /opt/xvla/install/setup.bash
exec "$@"
