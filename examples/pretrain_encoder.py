from examples.pretrain.encoder import cli

if __name__ == "__main__":
    cli()
