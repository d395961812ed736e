"""Tables of users, items and pairs, held as rows in memory."""
