"""Episodes on disk: bags and LeRobot data sets, read and written; replay and training stand on it."""
