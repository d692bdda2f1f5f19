"""Tests, and the helpers they share (`model`, `case_adapter`)."""
