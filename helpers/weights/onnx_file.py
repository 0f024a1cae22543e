"""The weights of an .onnx file by the names that they had in torch."""

from pathlib import PurePosixPath

import numpy as np


def onnx_tensors(path):
    """{name: array} of a ViT that torch.onnx.export has written; the graph is read, not run.

    The exporter keeps a parameter's name, but for two kinds, which are renamed back: the matrix of
    a linear layer without a transposition left, (in, out), known by the path of its MatMul; and
    positions that were cut into the class token's row and the rest. Without numbers that lie in
    other files. ImportError without the onnx package.
    """
    try:
        import onnx
    except ImportError as error:
        raise ImportError(f"{path.name} is read by the onnx package: pip install onnx") from error
    graph = onnx.load(str(path), load_external_data=False).graph
    arrays = {
        tensor.name: np.array(onnx.numpy_helper.to_array(tensor))
        for tensor in graph.initializer
        if tensor.data_location != onnx.TensorProto.EXTERNAL
    }
    found = {name: array for name, array in arrays.items() if not name.startswith("onnx::")}
    rows = {}  # of positions, by the module that uses them
    for node in graph.node:
        module = ".".join(PurePosixPath(node.name).parts[1:-1])
        for name in set(node.input) & (arrays.keys() - found.keys()):
            if node.op_type == "MatMul" and arrays[name].ndim == 2:
                found[f"{module}.weight"] = arrays[name].T.copy()
            elif node.op_type in ("Concat", "Reshape") and arrays[name].ndim == 3:
                rows.setdefault(module, {})[arrays[name].shape[1]] = arrays[name]
    for module, parts in rows.items():
        if len(parts) == 2 and 1 in parts:
            (rest,) = (part for length, part in parts.items() if length > 1)
            found[f"{module}.position_embeddings"] = np.concatenate([parts[1], rest], axis=1)
    return found
