"""What runs come to, as tables, text, pictures and pages; imports no JAX."""
