from examples.pretrain.programs import cli

cli()
