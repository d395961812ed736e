"""Tables of user records, item statistics and neighbours, as rows in memory."""
