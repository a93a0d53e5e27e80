"""Questions about videos: the readers of benchmarks and the generated motion set."""
