"""The service as a reward function of TRL, verl and OpenRLHF; none of them is imported here."""
