"""`python -m pipelines` is the same as the console script `quadrank`."""

from pipelines.cli.commands import main

if __name__ == "__main__":
    main()
