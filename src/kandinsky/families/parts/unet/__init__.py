"""The U-Net of Kandinsky 3 and Kandinsky Video 1.x."""
