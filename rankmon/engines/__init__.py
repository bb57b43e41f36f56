"""Ways to the Hessian's spectra and ranks, and the choice between them."""
