"""The door of Kandinsky 4.0 V2A under its official name; the work is done by ``kandinsky``."""
