from benchmarks.accelerator.program import cli

cli()
