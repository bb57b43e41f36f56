"""Numerical linear algebra of arrays: spectra, numerical ranks, sketches, Lanczos quadrature."""
