"""What a training store holds of policies: checkpoints, revisions, announcements, and policies at rest."""
