from examples.redraw.everything import cli

cli()
