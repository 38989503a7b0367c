"""The columns of the files that the profiler writes; no PyTorch, for what only reads them."""

PARTS = ("data", "forward", "backward", "optimizer")
STEP_COLUMNS = ("epoch", "step", "start", *PARTS, "seconds", "pictures")
PHASE_COLUMNS = ("name", "start", "seconds")
OPERATOR_COLUMNS = ("operator", "calls", "self_cpu_ms", "cpu_ms", "self_gpu_ms", "input_shapes")
SYSTEM_COLUMNS = (
    "timestamp",
    "cpu_percent",
    "memory_percent",
    "memory_used_bytes",
    "process_cpu_percent",
    "disk_read_bytes",
    "disk_write_bytes",
    "iowait_percent",
    "network_sent_bytes",
    "network_received_bytes",
    "gpu_percent",
    "gpu_memory_percent",
)
