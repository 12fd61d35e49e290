from examples.convergence.experiment import cli

cli()
