"""Choosing among N responses for a user, judged by what the user truly wants."""
