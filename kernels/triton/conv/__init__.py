"""Convolutions: fprop, dgrad, wgrad, and the stack made of them."""
