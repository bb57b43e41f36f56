"""Numerical linear algebra on arrays: spectra, numerical ranks, sketches, Lanczos quadrature."""
