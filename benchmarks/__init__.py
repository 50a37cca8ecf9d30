"""The benchmark suite, imported as nanonet.benchmarks."""
