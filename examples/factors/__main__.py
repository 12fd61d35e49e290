from examples.factors.experiment import cli

cli()
