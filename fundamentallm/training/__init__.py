"""Training: ``session.run_training`` is the one path, ``trainer.Trainer`` the loop, the rest what it steps with."""
