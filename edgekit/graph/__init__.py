"""ONNX graphs: read, normalised, folded, run, counted, and turned into torch modules and back."""
