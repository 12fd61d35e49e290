from examples.finetune_t5.sweep import cli

if __name__ == "__main__":
    cli()
