"""Where the project's numbers come from: a module `bench_NAME` for each benchmark; what they share is in packages.

`harness` takes a number, `inputs` are what is measured on, `peers` are what we are compared with, `jobs` are what is
measured, `profiling` takes a training step apart. Each imports only those before it.

Part of a checkout, not of the installed package: `quadrank bench NAME` imports `benchmarks.bench_NAME` from the
project's root and calls its `run`, which returns a `benchmarks.harness.report.Report`.
"""
