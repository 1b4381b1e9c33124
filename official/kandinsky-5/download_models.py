"""The official `download_models.py` of Kandinsky 5.0: weights into `./weights`, where the configurations look for them.

    python download_models.py                                          # the eight T2V Lite models of the first release
    python download_models.py --models all                             # all that today's official script fetches
    python download_models.py --models kandinskylab/Kandinsky-5.0-T2I-Lite

It translates to `kandinsky download ID... --dir ./weights`: only the files that are needed, resumed and verified.
"""

import argparse
import os
import sys
from collections.abc import Sequence

from kandinsky.cli.main import main as kandinsky
from kandinsky.compat.official_files import FILES, repositories


def chosen(models: str | None) -> list[str]:
    """Catalogue ids of the models that were asked for.

    Raises:
        ValueError: A name is not official.
    """
    if models is None:
        return list(dict.fromkeys(file.card for name, file in FILES.items() if name.startswith("config_")))
    if models == "all":
        cards = dict.fromkeys(file.card for file in FILES.values())
        return [card for card in cards if "-pretrain-" not in card and "-nocfg-" not in card]
    known = repositories()
    ids = []
    for name in models.split(","):
        # the first release lay under another owner
        repository = name.strip().replace("ai-forever/", "kandinskylab/")
        if repository not in known:
            raise ValueError(f"model `{name.strip()}` is unknown: use `all` or one of {', '.join(known)}")
        ids.append(known[repository])
    return ids


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Fetch the weights of Kandinsky 5.0.")
    parser.add_argument("--models", default=None, help="Hugging Face repositories with commas between them, or `all`")
    parser.add_argument("--cache_dir", default="./weights")
    parser.add_argument("--hf_token", default=None, help="for the FLUX autoencoder of the image models")
    o = parser.parse_args(arguments)
    try:
        ids = chosen(o.models)
    except ValueError as error:
        parser.error(str(error))
    if o.hf_token:
        os.environ["HF_TOKEN"] = o.hf_token
    return kandinsky(["download", *ids, "--dir", o.cache_dir])


if __name__ == "__main__":
    sys.exit(main())
