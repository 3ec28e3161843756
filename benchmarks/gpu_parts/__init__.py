"""The parts of benchmarks/gpu.py: what each measures and how. The command, its clock and its table stand there."""
