from examples.sharpness.experiment import cli

cli()
