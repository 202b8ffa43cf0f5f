"""Searches: many short runs of one configuration with other settings, on Ray Tune (`cdrl tune`)."""

import os

# Read by Ray Tune when it is imported or begins: Ctrl-C is ours, and it may neither log nor print.
os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
