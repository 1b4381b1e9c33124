"""Fetch the weights of Kandinsky 4.0 T2V Flash into `./weights`, where the official call looks for them.

It translates to `kandinsky download … --dir ./weights`: only the files that are needed, resumed and verified.
"""

import sys

from kandinsky.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["download", "kandinsky4-t2v-flash", "--dir", "./weights"]))
