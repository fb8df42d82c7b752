"""What travels between clients and the service: requests, answers, errors. No torch, no Ray."""
