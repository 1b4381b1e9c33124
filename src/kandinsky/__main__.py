"""`python -m kandinsky` is the command `kandinsky`."""

import sys

from kandinsky.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
