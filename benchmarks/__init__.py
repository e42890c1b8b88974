"""Where the project's numbers come from: one module a benchmark, its peers beside it.

Part of a checkout, not of the installed package: `quadrank bench NAME` imports `benchmarks.bench_NAME` from the
project's root and calls its `run`, which returns a `benchmarks.report.Report`.
"""
