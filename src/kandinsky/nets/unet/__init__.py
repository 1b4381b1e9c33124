"""The U-Net of Kandinsky 3 and of Kandinsky Video 1.0 and 1.1: one implementation, time as a value."""
