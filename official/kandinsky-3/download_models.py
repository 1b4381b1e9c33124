"""Fetch the weights of Kandinsky 3.1 (base and Flash) and of inpainting into `./weights`.

It translates to `kandinsky download … --dir ./weights`: only the files that are needed, resumed and verified.
"""

import sys

from kandinsky.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["download", "kandinsky3.0", "kandinsky3.1-flash", "kandinsky3.0-inpaint", "--dir", "./weights"]))
