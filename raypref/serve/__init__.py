"""Serving: adapt users and score rewards over HTTP, behind autoscaling, losing nothing."""
