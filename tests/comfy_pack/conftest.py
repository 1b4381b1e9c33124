from tiny.fixtures import no_hub

__all__ = ["no_hub"]
