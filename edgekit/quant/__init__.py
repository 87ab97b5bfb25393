"""The maths of quantization: ranges from calibration, one QuantSpec, and its grids."""
