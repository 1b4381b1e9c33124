"""Fetch the weights of Kandinsky Video 1.0 into this folder, where the official snippet looks for them.

It translates to `kandinsky download kandinsky-video-1.0 --dir .`: only the files that are needed, resumed and verified.
"""

import sys

from kandinsky.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["download", "kandinsky-video-1.0", "--dir", "."]))
