from tiny.fixtures import *  # noqa: F403
