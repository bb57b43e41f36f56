"""H_o, H_f and the Jacobian of a network: products, rows, closed forms, and their memory."""
