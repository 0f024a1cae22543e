"""The reader's own photograph, chosen or taken beside the text that she reads.

camera.js asks for it and sends it, camera.css dresses it. Unlike the other figures this one needs a
kernel, and the package anywidget, which is imported only when the figure is asked for.
"""

import io

import torch
from PIL import Image

from helpers.folders.decoding import pixels
from pictures.explorer import style_and_script


class PhotoPicker:
    """Two buttons, a file or the camera: the last line of a cell. Later cells ask for the photo.

    ImportError without anywidget.
    """

    def __init__(self):
        try:
            from anywidget import AnyWidget
        except ImportError as error:
            raise ImportError(
                "anywidget is not installed: pip install anywidget, then reload this page"
            ) from error
        from traitlets import CBytes

        class Asking(AnyWidget):
            _css, _esm = style_and_script("camera")
            jpeg = CBytes().tag(sync=True)  # a browser's bytes arrive as a memoryview

        self.widget = Asking()

    def _repr_mimebundle_(self, **asked):
        return self.widget._repr_mimebundle_(**asked)

    @property
    def file(self):
        """The photo as an open JPEG file, None until there is one; ValueError if it is broken."""
        if not self.widget.jpeg:
            return None
        file = io.BytesIO(self.widget.jpeg)
        try:
            Image.open(file).load()
        except OSError as error:
            raise ValueError("What came is no whole picture: choose or take it again") from error
        file.seek(0)
        return file

    @property
    def photo(self):
        """The photo, uint8 (3, H, W), H and W at most 1024, or None. ValueError as for file."""
        file = self.file
        return torch.from_numpy(pixels(Image.open(file), None)) if file else None
