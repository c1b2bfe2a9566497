"""The federation: who is there, who takes part, and which replies count."""
