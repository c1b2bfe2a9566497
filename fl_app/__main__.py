"""``python -m fl_app``: the command ``fl-app``."""

from fl_app.cli.run import main

if __name__ == "__main__":
    main()
