from examples.sharpness.verdict import cli

if __name__ == "__main__":
    cli()
