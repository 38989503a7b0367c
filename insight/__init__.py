"""Reads what a training job wrote: the debugger's rules, the profiler's rules, and the report."""
