"""H_o, H_f and the Jacobian of any network as operators, and the memory that they take."""
