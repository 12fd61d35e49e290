from examples.heterogeneity.experiment import cli

cli()
