"""What is stored of users, items and pairs: rows, Bloom filters and the compiled loops over them."""
