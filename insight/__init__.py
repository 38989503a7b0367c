"""Reads what a training job wrote: the debugger's rules, the profiler's rules, and the report."""

import os

# Before anything imports smdebug, which otherwise tells on stdout what it opens and closes.
os.environ.setdefault("SMDEBUG_LOG_LEVEL", "error")
