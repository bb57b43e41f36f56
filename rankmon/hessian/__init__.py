"""H_o, H_f and the Jacobian of a network: products, rows and closed forms, and their memory."""
