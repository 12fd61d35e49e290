from examples.stability.experiment import cli

cli()
