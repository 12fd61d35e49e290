from examples.finetune_t5.experiment import cli

cli()
