from examples.pretrain.t5 import cli

if __name__ == "__main__":
    cli()
