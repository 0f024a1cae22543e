"""Your own pictures: a folder with one sub-folder per class, or an .npz of JPEG bytes."""
