"""Federated training: comparisons stay with the clients, the server sees sums of updates and user vectors."""
