"""The page, plots and film of a recorded run, from its bag."""
