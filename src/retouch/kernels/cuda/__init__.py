"""UNet calls that a GPU repeats as recorded graphs."""
