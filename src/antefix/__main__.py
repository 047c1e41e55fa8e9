"""`python -m antefix`, which is also how a launcher starts it: `torchrun --nproc-per-node 2 -m antefix train ...`."""

from antefix.cli.main import app

if __name__ == "__main__":
    app()
