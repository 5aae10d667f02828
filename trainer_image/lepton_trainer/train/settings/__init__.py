"""What a user may write: one file per task, what they share in `shared`, and what every group of settings obeys in `section`."""
