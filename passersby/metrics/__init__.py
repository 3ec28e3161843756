"""What is measured, as plain functions of arrays. Never imports Ray."""
